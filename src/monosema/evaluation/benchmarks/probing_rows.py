"""What probes read: activations and latents of tokens, or their means over texts.

Shape letters: B contexts, T tokens, I input width, F latents, E active entries, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary, Latents
from monosema.core.errors import ConfigError, DataError
from monosema.core.progress import Progress
from monosema.data.packing import packing_rule
from monosema.data.packing_config import Packing
from monosema.evaluation.measure import ROWS_PER_STEP, evaluation_mode, require_finite_weights
from monosema.evaluation.sites import side_by_side, sites_of
from monosema.kernels.latents import latents_from_dense, stack_tokens
from monosema.metrics import require_finite
from monosema.models import LanguageModel


@dataclass(frozen=True)
class ProbeRows:
    """The two things that are compared, on the CPU."""

    x_NI: Tensor
    """The activations."""
    latents: Latents
    """What the coder makes of them."""


class Framing:
    """Puts the model's own tokens around a text, as training does: BOS (or EOS) before it, [CLS] and [SEP] around it.

    Raises ``ConfigError`` where the model has no tokenizer or no room for text.
    """

    def __init__(self, model: LanguageModel, context_size: int) -> None:
        if model.tokenizer is None:
            raise ConfigError(f"{model.name} has no tokenizer, so no text can be probed; load one with the model")
        largest = model.context_size or context_size
        rule = packing_rule(Packing(), model.tokenizer, min(context_size, largest))
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


def chosen_rows(
    coder: Dictionary, model: LanguageModel, contexts: Sequence[Sequence[int]], chosen: Sequence[Tensor], bar: Progress
) -> ProbeRows:
    """The rows at the positions ``chosen`` (ascending int64) of each of ``contexts``, in order."""
    masks = []
    for context, positions in zip(contexts, chosen, strict=True):
        mask = torch.zeros(len(context), dtype=torch.bool)
        mask[positions] = True
        masks.append(mask)
    parts = [(x, latents) for _, x, latents in _encoded(coder, model, contexts, masks, bar)]
    return ProbeRows(torch.cat([x for x, _ in parts]), stack_tokens([latents for _, latents in parts]))


def mean_rows(coder: Dictionary, model: LanguageModel, contexts: Sequence[Sequence[int]], bar: Progress) -> ProbeRows:
    """A row for each of ``contexts``: the mean over its tokens that are not special.

    Raises ``DataError`` where all tokens of one are special.
    """
    special = torch.tensor(sorted(model.special_token_ids), dtype=torch.int64)
    masks = [~torch.isin(torch.tensor(context), special) for context in contexts]
    for number, mask in enumerate(masks):
        if not bool(mask.any()):
            raise DataError(f"text {number} of those probed has no token that is not special; leave it out")
    means, latents = [], []
    for number_N, x_NI, of_rows in _encoded(coder, model, contexts, masks, bar):
        counts = torch.bincount(number_N)
        total = x_NI.new_zeros(len(counts), x_NI.shape[1]).index_add_(0, number_N, x_NI)
        means.append(total / counts[:, None])
        of_entry = number_N[of_rows.rows()]
        pooled = of_rows.values.new_zeros(len(counts), of_rows.d_sae)
        pooled.index_put_((of_entry, of_rows.indices.long()), of_rows.values / counts[of_entry], accumulate=True)
        latents.append(latents_from_dense(pooled))
    return ProbeRows(torch.cat(means), stack_tokens(latents))


def _encoded(
    coder: Dictionary,
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    masks: Sequence[Tensor],
    bar: Progress,
) -> Iterator[tuple[Tensor, Tensor, Latents]]:
    """Batch by batch: the number of each row's context in the batch, its activations in float32 and its latents."""
    require_finite_weights(coder)
    sites = sites_of(coder, {"": model}, to_be_written=False)
    names = sites.of_model("")
    per_batch = max(1, ROWS_PER_STEP // max(map(len, contexts)))
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
            x_NI = side_by_side(values, sites.read, counted_BT)
            require_finite(f"activations read at {coder.hook_name}, batch {start // per_batch}", x_NI)
            latents = coder.encode_sparse(x_NI.to(device=coder.device, dtype=coder.dtype))
            yield counted_BT.nonzero()[:, 0], x_NI.float().cpu(), _on_cpu(latents)
            bar.advance(int(present_BT.sum()))


def _padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _on_cpu(latents: Latents) -> Latents:
    return Latents(
        latents.crow.cpu(), latents.indices.cpu(), latents.values.float().cpu(), latents.d_sae, latents.leading_shape
    )
