"""What the model is asked to predict on a batch, and where predictions count.

Shape letters: B contexts, T positions. The same positions count in every run, clean, spliced and ablated, and special
positions keep the site's own value in all of them, so that the runs differ only in what the coder is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.seeds import random_stream
from monosema.models import LanguageModel

MASKED_FRACTION = 0.15
"""Of an encoder's positions, as in its pre-training (Devlin et al. 2019, section 3.1), but always by the mask token."""


@dataclass(frozen=True)
class Task:
    """What the model is asked to predict on one batch."""

    tokens: Tensor
    """``[B, T]`` token ids put in."""
    positions: Tensor
    """``[n]`` positions, in the flattened ``[B * T]``, whose prediction counts."""
    targets: Tensor
    """``[n]`` token ids to predict there."""
    documents: Tensor | None = None
    """``[B, T]`` the number of each position's document, where the model needs it."""


def next_token_task(
    contexts: Tensor, special: Tensor, no_target: Tensor | None = None, documents: Tensor | None = None
) -> Task:
    """Position t predicts token t + 1; counted where position t is not ``special`` and token t + 1 a target.

    A special position keeps the site's own value, so its prediction would be partly clean; a special target (a
    document's end, a new document's start) is not what the model is judged by. ``no_target`` is ``special`` where
    not given.
    """
    no_target = special if no_target is None else no_target
    counted = torch.zeros_like(special)
    counted[:, :-1] = ~special[:, :-1] & ~no_target[:, 1:]
    positions = counted.flatten().nonzero().squeeze(1)
    return Task(contexts, positions, contexts.flatten()[(positions + 1).clamp(max=contexts.numel() - 1)], documents)


def choose_masked(special: Tensor, seed: int) -> Tensor:
    """``[n, T]`` bool: the positions an encoder must predict, ``MASKED_FRACTION`` of those that are not special.

    Drawn for all contexts at once, so that it does not depend on how they are batched.
    """
    drawn = torch.rand(special.shape, generator=random_stream(seed, "evaluation", "masked")) < MASKED_FRACTION
    return drawn.to(special.device) & ~special


def masked_token_task(contexts: Tensor, masked: Tensor, mask_token_id: int, documents: Tensor | None = None) -> Task:
    """Masked positions predict the token that was there."""
    positions = masked.flatten().nonzero().squeeze(1)
    return Task(contexts.masked_fill(masked, mask_token_id), positions, contexts.flatten()[positions], documents)


def no_task(models: Mapping[str, LanguageModel]) -> str:
    """Why the models' predictions cannot be compared; empty where they can."""
    n_encoders = sum(model.is_encoder for model in models.values())
    if 0 < n_encoders < len(models):
        return "an encoder and a decoder have no task in common"
    for model in models.values():
        if not model.has_head:
            return (
                f"{type(model.hf).__name__} has no language-model head (a …ForCausalLM or …ForMaskedLM class has one)"
            )
    if n_encoders and mask_token_id(models) is None:
        return "the model is an encoder and its tokenizer has no mask token"
    return ""


def mask_token_id(models: Mapping[str, LanguageModel]) -> int | None:
    """What stands at the positions that encoders must predict; None for decoders."""
    first = next(iter(models.values()))
    return getattr(first.tokenizer, "mask_token_id", None) if first.is_encoder else None
