"""What a training step computes, counted before it begins: operations of its products, for one token.

A multiplication and an addition are two operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from monosema.coders import TrainableDictionary
from monosema.kernels.bags import DENSE_DENSITY
from monosema.training.config import TrainingConfig
from monosema.training.memory import most_active
from monosema.training.terms import Sparsity


@dataclass(frozen=True)
class StepOperations:
    """Of one token."""

    encoder: int
    """The dense product ``x W_enc`` of every part: ``2 d_in d_sae``."""
    rest: int
    """``2 n (d_in + 3 d_out)`` for n active latents: the decoder's product, and the gradients of activations, decoder
    rows and encoder rows; ``4 d_in d_out`` for a skip connection. Selection, losses and the update are left out."""


def step_operations(
    dictionary: TrainableDictionary, config: TrainingConfig, sparsity: Sparsity | None
) -> StepOperations:
    """Of training ``dictionary`` with ``sparsity`` and as ``config`` says; active latents as ``step_memory`` has them.

    Where so many are active that products are dense, n is the number of all latents. What a policy does for dead
    latents is left out.
    """
    encoder, rest = 0, 0.0
    for part in dictionary.parts:
        coder = part.coder
        n = most_active(coder, config, sparsity)
        if n > DENSE_DENSITY * coder.d_sae:
            n = coder.d_sae
        encoder += 2 * coder.d_in * coder.d_sae
        rest += 2 * n * (coder.d_in + 3 * coder.d_out)
        rest += 0 if coder.W_skip is None else 4 * coder.d_in * coder.d_out
    return StepOperations(encoder, round(rest))
