"""The contract of an activation.

Shape letters: B tokens, F latents, E active entries, N near-threshold entries, G open-gate entries.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from monosema.coders.activations.family import SavedRule
from monosema.core.errors import ConfigError
from monosema.kernels import Latents, stack_tokens
from monosema.kernels.select import Parts

ROUNDING = 2**-7
"""How far, relative to the largest, a pre-activation in bfloat16 may lie from its exact value."""


@dataclass(frozen=True)
class Selection:
    """What an activation chose in one batch, with all that its backward pass needs."""

    latents: Latents
    """[E] active entries and their activations."""
    near: Latents | None = None
    """[N] entries in the window around their threshold, active or not; values are ``pre - θ``."""
    near_activations: Tensor | None = None
    """[N] the activations of those entries, 0 where inactive."""
    gate: Latents | None = None
    """[G] entries with an open gate; values are the gate's pre-activations (Gated)."""
    active_in_gate: Tensor | None = None
    """[E] int64: the place of each active entry in ``gate``."""
    least: Tensor | None = None
    """0-d: the threshold this batch's selection amounts to (TopK, AbsTopK, BatchTopK)."""

    @staticmethod
    def stack(parts: Sequence[Selection]) -> Selection:
        """The selections of consecutive groups of tokens as that of all."""
        if len(parts) == 1:
            return parts[0]

        def latents(name: str) -> Latents | None:
            groups = [getattr(part, name) for part in parts]
            return None if groups[0] is None else stack_tokens(groups)

        def tensors(name: str) -> Tensor | None:
            groups = [getattr(part, name) for part in parts]
            return None if groups[0] is None else torch.cat(groups)

        least, gates = None, latents("gate")
        active_in_gate = tensors("active_in_gate")
        if active_in_gate is not None:
            sizes = [part.gate.nnz for part in parts if part.gate is not None]
            starts = torch.tensor([0, *itertools.accumulate(sizes[:-1])], device=active_in_gate.device)
            counts = torch.tensor([part.latents.nnz for part in parts], device=active_in_gate.device)
            active_in_gate = active_in_gate + starts.repeat_interleave(counts)
        if parts[0].least is not None:
            n_tokens = [part.latents.n_tokens for part in parts]
            shares = [part.least * n for part, n in zip(parts, n_tokens, strict=True) if part.least is not None]
            least = torch.stack(shares).sum() / sum(n_tokens)
        return Selection(
            stack_tokens([part.latents for part in parts]),
            latents("near"),
            tensors("near_activations"),
            gates,
            active_in_gate,
            least,
        )

    @property
    def penalised(self) -> Latents:
        """What sparsity losses look at: the gate's values where there is a gate, else the activations."""
        return self.latents if self.gate is None else self.gate


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
    window: float | None = None
    """Width of the window that ``near`` was selected with."""


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
    weights_by_decoder_norm = False
    """Whether the coder gives decoder norms as ``weights_F`` to the selection."""
    signed = False
    """Whether activations keep the sign of their pre-activations, and are chosen by magnitude (AbsTopK)."""
    learns_threshold = False
    """Whether near-threshold entries pass gradients from the output (JumpReLU)."""

    @abstractmethod
    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        """The training rule.

        ``weights_F [F]`` multiply the pre-activations in the comparison only. ``window`` is the width of the window
        around the threshold whose entries a loss on the number of active latents needs.
        """

    def select_parts(
        self, parts: Parts, n_tokens: int, weights_F: Tensor | None = None, window: float | None = None
    ) -> Selection:
        """The training rule on a batch of ``n_tokens`` that comes in parts."""
        return Selection.stack([self.select(pre, weights_F, window) for pre in parts()])

    def above(self, selection: Selection) -> Latents | None:
        """The entries with ``pre > θ`` and ``pre - θ``, where the selection has all of them."""
        return None

    def candidates(
        self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None
    ) -> tuple[Latents, ...]:
        """Entries that ``select`` may look at once pre-activations are exact, given ones of low precision.

        Those of pre-activations raised and lowered by what rounding may have done to them.
        """
        margin = ROUNDING * pre_BF.abs().amax() if pre_BF.numel() > 0 else 0.0
        both = (self.select(pre_BF + sign * margin, weights_F, window) for sign in (1, -1))
        return tuple(
            entries for chosen in both for entries in (chosen.latents, chosen.near, chosen.gate) if entries is not None
        )

    @abstractmethod
    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        """The rule at inference: what is saved and what is evaluated."""

    @abstractmethod
    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        """``infer`` as a dense ``[B, F]`` through which autograd can pass; what is inactive is 0, never -0."""

    @abstractmethod
    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        """Gradients with respect to the pre-activations and the activation's own parameters."""

    @abstractmethod
    def scale_latents_(self, factors_F: Tensor) -> None:
        """Change own parameters in place as if every pre-activation were multiplied by ``factors_F > 0``."""

    def scale_weights_(self, factor: float) -> None:
        """Change own parameters in place as if the selection's weights were multiplied by ``factor > 0``."""

    def shift_latents_(self, offsets_F: Tensor) -> Tensor:
        """Change own parameters in place as if ``offsets_F`` were added to every pre-activation, as far as they can;
        returns what must be added to the encoder bias for the rest, 0 without one."""
        return offsets_F

    def saved_rule(self, dtype: torch.dtype) -> SavedRule | None:
        """The rule at inference in the words that file formats share, its tensors ``[d_sae]`` in the coder's ``dtype``.

        None for a rule that they have no word for: the dictionary is then saved in the library's own layout, and other
        ones refuse it. Raises ``ConfigError`` where the rule needs a threshold that is not known yet.
        """
        return None

    def use_k_(self, k: float | None) -> None:
        """From now on select ``k`` latents a token in training, as a schedule says; the config's own k where None.

        Activations of a fixed count do so. ``ConfigError`` for a k elsewhere.
        """
        if k is not None:
            raise ConfigError(f"{type(self).__name__} selects no fixed number of latents, so its k cannot be {k}")

    def thresholds(self) -> Tensor | float:
        """θ: what a pre-activation must exceed, where the rule is one of thresholds; 0 elsewhere."""
        return 0.0

    def threshold_gradients(self, gradient_F: Tensor) -> Mapping[str, Tensor]:
        """∂loss of each own parameter, by name, given ``gradient_F [F]``, ∂loss with respect to ``thresholds()``."""
        return {}

    def start_above_(self, threshold: float) -> float:
        """Before training, let only pre-activations above ``threshold >= 0`` be active, as far as own parameters can;
        returns what must be added to the encoder bias for the rest. A rule with a fixed count has nothing to do."""
        return 0.0

    def reset_latents_(self, dead_F: Tensor) -> None:
        """Put own parameters of the latents ``dead_F`` (indices) back to their starting values in place."""

    def update_(self, selection: Selection, ok: Tensor) -> None:
        """Update running statistics in place after a step; ``ok`` is a 0-d bool, False where the step was skipped."""

    def project_(self) -> None:
        """Put own parameters back into their allowed range in place after an optimiser step."""


def where_active(active: Tensor, values: Tensor) -> Tensor:
    """``values`` where ``active``, elsewhere 0; NaN stays. A product with 0 and ``relu`` would give -0 in places."""
    return torch.where(active | values.isnan(), values, 0)
