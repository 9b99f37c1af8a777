"""Rows of texts, words and tokens: a model's activations where they stand, and what the coder makes of them.

Shape letters: B contexts, T tokens, D input width, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monosema.coders import Dictionary, Latents
from monosema.core.errors import ConfigError, DataError
from monosema.core.progress import Progress
from monosema.data.dictionary_sites import side_by_side, sites_of
from monosema.data.packing import packing_rule
from monosema.data.packing_config import Packing
from monosema.data.tokenise import encode
from monosema.data.trained_on import model_notes
from monosema.evaluation.activations import ROWS_PER_STEP
from monosema.evaluation.benchmarks.rows import EncodedRows, encode_on_cpu, on_cpu
from monosema.evaluation.measure import evaluation_mode, require_finite_weights
from monosema.kernels.latents import latents_from_dense, stack_tokens
from monosema.metrics import require_finite
from monosema.models import LanguageModel

SLOT = "{word}"
"""Where a template takes its word."""


class Framing:
    """Puts the model's own tokens around a text, as training does: BOS (or EOS) before it, [CLS] and [SEP] around it.

    Without ``context_size`` contexts are as long as the model's. Raises ``ConfigError`` where the model has no
    tokenizer or no room for text.
    """

    def __init__(self, model: LanguageModel, context_size: int | None = None) -> None:
        if model.tokenizer is None:
            raise ConfigError(f"{model.name} has no tokenizer, so no text can be read; load one with the model")
        sizes = [size for size in (context_size, model.context_size) if size is not None]
        rule = packing_rule(Packing(), model.tokenizer, min(sizes, default=2**30))
        self._begin = [] if rule.begin_context is None else [rule.begin_context]
        self._end = [] if rule.end_context is None else [rule.end_context]
        self.room = rule.context_size - len(self._begin) - len(self._end)
        """Tokens of text in a context."""

    @property
    def n_before(self) -> int:
        """Tokens before the text."""
        return len(self._begin)

    def around(self, ids: Sequence[int]) -> list[int]:
        """A context with this text."""
        return [*self._begin, *ids, *self._end]


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt."""

    ids: tuple[int, ...]
    """Token ids, framed."""
    position: int
    """Of the last token of its word."""


def make_prompt(model: LanguageModel, template: str, word: str) -> Prompt:
    """``template`` with ``word`` in its slot, as the model's tokenizer cuts it, framed.

    Raises ``ConfigError`` where the template has not exactly one slot or the model no tokenizer that tells where tokens
    begin, and ``DataError`` where the word is empty or the prompt is longer than the model's context.
    """
    if template.count(SLOT) != 1:
        raise ConfigError(f"a template needs {SLOT} exactly once, got {template!r}")
    framing = Framing(model)
    require_offsets(model)
    if not word.strip():
        raise DataError("a word is empty; leave it out")
    start = template.index(SLOT)
    assert model.tokenizer is not None
    cut = model.tokenizer(template.replace(SLOT, word), add_special_tokens=False, return_offsets_mapping=True)
    inside = [at for at, (a, b) in enumerate(cut["offset_mapping"]) if a < start + len(word) and b > start and b > a]
    if not inside:
        raise DataError(f"the tokenizer of {model.name} makes no token of {word!r}; leave it out")
    if len(cut["input_ids"]) > framing.room:
        raise DataError(
            f"the prompt of {word!r} has {len(cut['input_ids'])} tokens, more than the {framing.room} that "
            f"{model.name} has room for"
        )
    return Prompt(tuple(framing.around(cut["input_ids"])), framing.n_before + inside[-1])


def require_offsets(model: LanguageModel) -> None:
    """Raise ``ConfigError`` unless the model's tokenizer says where its tokens lie in the text."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise ConfigError(f"{model.name} has no fast tokenizer, which tells where tokens lie; load it with one")


def text_rows(
    coder: Dictionary, model: LanguageModel, texts: Sequence[str], *, context_size: int = 128, progress: bool = True
) -> EncodedRows:
    """A row for each text: the means of activations and latents over its tokens that are not special.

    Of each text the first ``context_size`` tokens are run, framing included. Copies of a text are one group. Raises
    ``ConfigError`` for a model without tokenizer and ``DataError`` for a text of no token that is not special.
    """
    if isinstance(texts, str) or not len(texts):
        raise DataError("there are no texts; give a list of them, some of each label")
    framing = Framing(model, context_size)
    contexts = [framing.around(ids[: framing.room].tolist()) for ids in encode(model.tokenizer, list(texts))]
    special = torch.tensor(sorted(model.special_token_ids), dtype=torch.int64)
    masks = [~torch.isin(torch.tensor(context, dtype=torch.int64), special) for context in contexts]
    for number, mask in enumerate(masks):
        if not bool(mask.any()):
            raise DataError(f"text {number} ({texts[number]!r:.40}) has no token that is not special; leave it out")
    means, latents = [], []
    for number_N, x_ND, of_rows in _encoded(coder, model, contexts, masks, progress):
        counts = torch.bincount(number_N)
        total = x_ND.new_zeros(len(counts), x_ND.shape[1]).index_add_(0, number_N, x_ND)
        means.append(total / counts[:, None])
        of_entry = number_N[of_rows.rows()]
        pooled = of_rows.values.new_zeros(len(counts), of_rows.d_sae)
        pooled.index_put_((of_entry, of_rows.indices.long()), of_rows.values / counts[of_entry], accumulate=True)
        latents.append(latents_from_dense(pooled))
    return EncodedRows(torch.cat(means), stack_tokens(latents), same(texts), tuple(model_notes(coder, model)))


def word_rows(
    coder: Dictionary, model: LanguageModel, words: Sequence[str], *, template: str = SLOT, progress: bool = True
) -> EncodedRows:
    """A row for each word: activation and latents at its last token in ``template``, which holds ``{word}`` once.

    What comes before it in the template may be examples of a task, as in SAEBench's first-letter prompts. Copies of a
    word are one group. Raises as ``make_prompt`` does, and ``DataError`` for no words.
    """
    if isinstance(words, str) or not len(words):
        raise DataError("there are no words; give a list of at least one")
    rows = prompt_rows(coder, model, [make_prompt(model, template, word) for word in words], progress)
    return replace(rows, groups_N=same(words))


def prompt_rows(coder: Dictionary, model: LanguageModel, prompts: Sequence[Prompt], progress: bool) -> EncodedRows:
    """A row for each prompt, at the last token of its word."""
    return rows_at(
        coder,
        model,
        [list(each.ids) for each in prompts],
        [torch.tensor([each.position]) for each in prompts],
        progress,
    )


def rows_at(
    coder: Dictionary,
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    chosen: Sequence[Tensor],
    progress: bool,
) -> EncodedRows:
    """The rows at the positions ``chosen`` (ascending int64) of each of ``contexts``, in order; a group each."""
    masks = []
    for context, positions in zip(contexts, chosen, strict=True):
        mask = torch.zeros(len(context), dtype=torch.bool)
        mask[positions] = True
        masks.append(mask)
    parts = [(x, latents) for _, x, latents in _encoded(coder, model, contexts, masks, progress)]
    x_ND = torch.cat([x for x, _ in parts])
    latents = stack_tokens([latents for _, latents in parts])
    return EncodedRows(x_ND, latents, torch.arange(len(x_ND)), tuple(model_notes(coder, model)))


def same(texts: Sequence[str]) -> Tensor:
    """[N] int64: a number for each text, the same for copies."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return torch.tensor([numbers[text] for text in texts], dtype=torch.int64)


def _encoded(
    coder: Dictionary,
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    masks: Sequence[Tensor],
    progress: bool,
) -> Iterator[tuple[Tensor, Tensor, Latents]]:
    """Batch by batch: the number of each row's context in the batch, its activations and its latents, on the CPU."""
    require_finite_weights(coder)
    sites = sites_of(coder, {"": model}, to_be_written=False)
    names = sites.of_model("")
    per_batch = max(1, ROWS_PER_STEP // max(map(len, contexts), default=1))
    bar = Progress("rows", sum(map(len, contexts)), enabled=progress)
    with bar, evaluation_mode(coder, model.hf):
        for start in range(0, len(contexts), per_batch):
            part = slice(start, start + per_batch)
            tokens_BT = _padded([torch.tensor(context) for context in contexts[part]])
            present_BT = _padded([torch.ones(len(context), dtype=torch.int64) for context in contexts[part]])
            counted_BT = _padded(list(masks[part]))
            captured = model.capture(
                tokens_BT.to(model.device), names.values(), attention_mask=present_BT.to(model.device)
            )
            values = {name: captured[hook] for name, hook in names.items()}
            x_ND = side_by_side(values, sites.read, counted_BT)
            require_finite(f"activations read at {coder.hook_name}, batch {start // per_batch}", x_ND)
            yield counted_BT.nonzero()[:, 0], on_cpu(x_ND), encode_on_cpu(coder, x_ND)
            bar.advance(int(present_BT.sum()))


def _padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
