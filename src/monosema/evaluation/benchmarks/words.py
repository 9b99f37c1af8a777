"""Words inside prompts: their token ids, the position of a word's last token, and a site's activations there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError
from monosema.evaluation.measure import evaluation_mode
from monosema.models import LanguageModel
from monosema.models.language_model import SiteName

SLOT = "{word}"
"""Where a template takes its word."""


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt."""

    ids: tuple[int, ...]
    """Token ids."""
    position: int
    """Of the last token of its word."""


def make_prompt(model: LanguageModel, template: str, word: str, *, prepend_bos: bool = True) -> Prompt:
    """``template`` with ``word`` in its slot, as the model's tokenizer cuts it.

    Raises ``ConfigError`` where the template has not exactly one slot or the model no tokenizer that tells where tokens
    begin, and ``DataError`` where the word is empty or the prompt is longer than the model's context.
    """
    if template.count(SLOT) != 1:
        raise ConfigError(f"a template needs {SLOT} exactly once, got {template!r}")
    if not getattr(model.tokenizer, "is_fast", False):
        raise ConfigError(f"{model.name} has no fast tokenizer, which tells where tokens begin; load it with one")
    if not word.strip():
        raise DataError("a word is empty; leave it out")
    start = template.index(SLOT)
    end = start + len(word)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    cut = tokenizer(template.replace(SLOT, word), return_offsets_mapping=True)
    ids = list(cut["input_ids"])
    inside = [at for at, (a, b) in enumerate(cut["offset_mapping"]) if a < end and b > start and b > a]
    position = inside[-1]
    bos = getattr(tokenizer, "bos_token_id", None)
    if prepend_bos and bos is not None and ids[0] != bos:
        ids, position = [bos, *ids], position + 1
    if model.context_size is not None and len(ids) > model.context_size:
        raise DataError(
            f"the prompt of {word!r} has {len(ids)} tokens, more than the {model.context_size} of the model"
        )
    return Prompt(tuple(ids), position)


def equal_lengths(prompts: Sequence[Prompt], batch_size: int) -> Iterator[list[int]]:
    """Batches of places of prompts that are equally long, so that none is padded."""
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.ids), []).append(place)
    for places in by_length.values():
        for first in range(0, len(places), batch_size):
            yield places[first : first + batch_size]


def token_batch(prompts: Sequence[Prompt], places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids ``[B, T]`` and word positions ``[B]`` of prompts of one length."""
    return torch.tensor([prompts[p].ids for p in places]), torch.tensor([prompts[p].position for p in places])


def capture_words(
    model: LanguageModel,
    hook_name: SiteName,
    words: Sequence[str],
    *,
    template: str = SLOT,
    prepend_bos: bool = True,
    batch_size: int = 64,
) -> Tensor:
    """The site's activations ``[len(words), width]`` at the last token of each word, on the CPU in the model's dtype.

    ``template`` holds ``{word}`` once, with what comes before it (examples of a task, as in SAEBench's first-letter
    prompts) and after. Raises as ``make_prompt`` does, ``DataError`` for no words, and ``UnknownNameError`` for a site
    that the model has not.
    """
    if isinstance(words, str) or not len(words):
        raise DataError("there are no words; give a list of at least one")
    prompts = [make_prompt(model, template, word, prepend_bos=prepend_bos) for word in words]
    site = model.site(hook_name)
    rows = torch.empty(len(words), site.width, dtype=model.dtype)
    with evaluation_mode(model.hf):
        for places in equal_lengths(prompts, batch_size):
            tokens, positions = token_batch(prompts, places)
            value = model.capture(tokens.to(model.device), [hook_name])[site.name].cpu()
            rows[places] = value[torch.arange(len(places)), positions]
    return rows
