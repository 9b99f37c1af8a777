"""One batch on its way through a coder, and the gradients that enter its backward pass.

Shape letters: B tokens, I input width, F latents, O output width, E active, N near-threshold and G open-gate
entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Union

from torch import Tensor

from monosema.coders.activations.base import Selection
from monosema.kernels import Latents


@dataclass(frozen=True)
class Encoding:
    """One batch on its way through a coder: what ``backward`` needs."""

    x_BI: Tensor
    """The input as the encoder saw it, ``b_dec`` already subtracted where the coder does so."""
    raw_BI: Tensor
    """The input as it came, tokens flattened."""
    selection: Selection
    """What the activation chose."""
    spread: Tensor | None = None
    """What ``decode`` multiplies each token by (``ScaledTokens.spread``) where the coder scaled tokens and scales its
    output back."""
    noise_BF: Tensor | None = None
    """What was added to the pre-activations."""

    @property
    def latents(self) -> Latents:
        return self.selection.latents


@dataclass(frozen=True)
class ExtraEntries:
    """Entries outside the selection that a policy trains as well (AuxK): ``g_out`` reaches them only."""

    latents: Latents
    """Entries and their activations."""
    g_out_BO: Tensor
    """∂loss with respect to the decode of these entries."""
    slope: Tensor | None = None
    """[E] ∂activation/∂pre of each entry; one by default."""


@dataclass(frozen=True)
class Everywhere:
    """A gradient that is the same for all tokens of a latent, but for some entries (pre-activation loss)."""

    g_F: Tensor
    """[F] ∂loss/∂pre of every entry of a latent."""
    but: Latents
    """The entries that it does not reach."""
    decoder_scale: Tensor | None = None
    """What the same loss gives the decoder, by whose norms it is weighted: as in ``LatentGradients``."""


@dataclass(frozen=True)
class LatentGradients:
    """∂loss with respect to latents, beyond what comes through the output."""

    latents: Tensor | None = None
    """[E] with respect to the activations (a sparsity loss)."""
    near: Tensor | None = None
    """[N] the same on near-threshold entries, active or not; where a threshold is learned it must come with
    ``latents`` (``∂f/∂θ`` is not zero there)."""
    near_step: Tensor | None = None
    """[N] with respect to ``1[pre > θ]`` on near-threshold entries (a loss on L0)."""
    gate: Tensor | None = None
    """[G] with respect to the gate's value on open-gate entries (Gated)."""
    window: float | None = None
    """The window the near-threshold entries were selected with."""
    decoder_scale: Tensor | None = None
    """[F, sites written] or [F, 1]: with respect to the decoder (a sparsity loss weighted by its norms) it is this many
    times each row's slices, or the whole row."""

    def plus(self, other: LatentGradients) -> LatentGradients:
        """The gradients of both losses; ``decoder_scale`` is left out. Windows must be one."""
        assert None in (self.window, other.window) or self.window == other.window, "one selection has one window"
        return LatentGradients(
            _sum(self.latents, other.latents),
            _sum(self.near, other.near),
            _sum(self.near_step, other.near_step),
            _sum(self.gate, other.gate),
            self.window if other.window is None else other.window,
        )


Contribution = Union[LatentGradients, ExtraEntries, Everywhere]
"""What a term of the objective asks of a coder beyond what comes through the output."""


def added(gradients: Sequence[LatentGradients]) -> LatentGradients:
    """Those of all terms; ``decoder_scale`` of several is left out."""
    return reduce(LatentGradients.plus, gradients) if gradients else LatentGradients()


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
