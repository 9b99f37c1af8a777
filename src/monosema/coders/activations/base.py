"""The contract of an activation.

Shape letters: B tokens, F latents, E active entries, N near-threshold entries, G open-gate entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from monosema.kernels import Latents


@dataclass(frozen=True)
class Selection:
    """What an activation chose in one batch, with all that its backward pass needs."""

    latents: Latents
    """[E] active entries and their activations."""
    near: Latents | None = None
    """[N] entries within half a bandwidth of their threshold, active or not; values are ``pre - θ`` (JumpReLU)."""
    gate: Latents | None = None
    """[G] entries with an open gate; values are the gate's pre-activations (Gated)."""
    least: Tensor | None = None
    """0-d: smallest value selected in the batch, 0 where the budget was not used up (BatchTopK)."""


@dataclass(frozen=True)
class ChannelGradients:
    """∂loss with respect to what a ``Selection`` holds."""

    latents: Tensor
    """[E] with respect to the activations."""
    near: Tensor | None = None
    """[N] with respect to the activations of near-threshold entries, were they active."""
    near_step: Tensor | None = None
    """[N] with respect to the indicator ``1[pre > θ]`` of near-threshold entries."""
    gate: Tensor | None = None
    """[G] with respect to the gate's values."""


@dataclass(frozen=True)
class ActivationGradients:
    """∂loss with respect to pre-activations and to the activation's own parameters."""

    pre: tuple[Latents, ...]
    """Entries whose values are gradients with respect to the pre-activations; the groups add up."""
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    """Gradient of each own parameter, by name."""


class Activation(nn.Module, ABC):
    """Turns pre-activations ``[B, F]`` into sparse latents, and their gradients back."""

    has_encoder_bias = True
    """Whether the coder adds ``b_enc`` to the pre-activations."""

    @abstractmethod
    def select(self, pre_BF: Tensor) -> Selection:
        """The training rule."""

    @abstractmethod
    def infer(self, pre_BF: Tensor) -> Latents:
        """The rule at inference: what is saved and what is evaluated."""

    @abstractmethod
    def infer_dense(self, pre_BF: Tensor) -> Tensor:
        """``infer`` as a dense ``[B, F]`` through which autograd can pass."""

    @abstractmethod
    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        """Gradients with respect to the pre-activations and the activation's own parameters."""

    @abstractmethod
    def scale_latents_(self, factors_F: Tensor) -> None:
        """Change own parameters in place as if every pre-activation were multiplied by ``factors_F > 0``."""

    def update_(self, selection: Selection, ok: Tensor) -> None:
        """Update running statistics in place after a step; ``ok`` is a 0-d bool, False where the step was skipped."""

    def project_(self) -> None:
        """Put own parameters back into their allowed range in place after an optimiser step."""
