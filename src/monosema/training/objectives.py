"""The loss of a batch and the gradients it hands to the coder. Pure: nothing here changes state.

Shape letters: B tokens, G nested levels, O output width, F latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Encoding, LatentGradients, SparseCoder
from monosema.coders.parts import Part
from monosema.coders.stack import Dictionary, add_offset
from monosema.core.errors import ConfigError
from monosema.kernels import Levels, budget_levels, decode, decode_levels, prefix_levels, sampled_products
from monosema.training.config import TrainingConfig
from monosema.training.penalties import penalty
from monosema.training.terms import HierarchicalTopK, LevelsConfig, Matryoshka, Sparsity


@dataclass(frozen=True)
class PartGradients:
    """What one part of a dictionary is given to train on."""

    g_out: Tensor
    """∂loss/∂(its output): ``[B, O]``, or ``[B, G, O]`` with levels."""
    own: LatentGradients
    """∂loss/∂latents beyond what comes through the output."""
    levels: Levels | None
    """How its entries were grouped."""


@dataclass(frozen=True)
class Loss:
    """Loss terms of one batch and their gradients."""

    terms: dict[str, Tensor]
    """0-d values by name, ``mse`` first; they sum to the loss."""
    penalty: Tensor | None
    """0-d: the sparsity penalty without its coefficient."""
    error_BO: Tensor
    """``y - ŷ``."""
    weights_BO: Tensor
    """What the squared errors are multiplied by; broadcasts over ``[B, O]``."""
    g_out: Tensor
    """∂loss/∂ŷ: ``[B, O]``, or ``[B, G, O]`` with levels."""
    parts: tuple[PartGradients, ...]
    """Gradients for each part."""
    energies: Tensor | None = None
    """``[2]``: ``Σ‖ŷ - b_dec‖²`` and ``Σ‖y - ŷ‖²`` over the batch."""

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()

    def largest_coefficient(self, p: float) -> float:
        """``2R ‖D‖ / (p ‖y - ŷ‖ S)``, above which ``S ∝ |f|^p`` takes f to nothing; three fifths of it.

        With all activations scaled by s, and so what they decode to, D (ŷ less bias and skip), the loss
        ``R(s) + λ s^p S`` has the slope ``pλS - 2R ⟨y - ŷ, D⟩ / ‖y - ŷ‖²`` at s = 1. Whatever the angle, it is
        positive for every λ above that value. Gated's penalty acts on the gate: R and ŷ are its auxiliary
        reconstruction's, and as closing gates leaves magnitudes as they are, the value itself is the bound. With levels
        ŷ is the last one's. Infinite where there is no penalty.
        """
        if self.penalty is None or self.energies is None:
            return math.inf
        reconstruction, safe = self.terms["mse"], 0.6
        if "gate_mse" in self.terms:
            reconstruction, safe = self.terms["gate_mse"], 1.0
        made, missed = self.energies.tolist()
        below = p * math.sqrt(missed) * float(self.penalty)
        return 2 * safe * float(reconstruction) * math.sqrt(made) / below if below > 0 else math.inf


@dataclass(frozen=True)
class Objective:
    """What is minimised, resolved for one dictionary."""

    config: TrainingConfig
    """The run."""
    sparsity: Sparsity | None
    """The sparsity loss."""
    site_weights_O: Tensor | None
    """``[O]`` weight of each output dimension; None for one everywhere."""

    @classmethod
    def of(cls, dictionary: Dictionary, config: TrainingConfig, sparsity: Sparsity | None) -> Objective:
        """Check what depends on the dictionary's shape and spread site weights over dimensions."""
        weights, widths = config.site_weights, dictionary.config.write_widths
        spread = None
        if weights is not None:
            if len(weights) != len(widths):
                raise ConfigError(f"{len(weights)} site_weights for {len(widths)} sites written; give one for each")
            each = torch.tensor(weights, dtype=dictionary.dtype, device=dictionary.device)
            spread = each.repeat_interleave(torch.tensor(widths, device=dictionary.device))
        if isinstance(config.levels, Matryoshka):
            for part in dictionary.parts:
                _level_weights(config.levels, len(config.levels.bounds(part.coder.d_sae)))
        return cls(config, sparsity, spread)

    @torch.no_grad()
    def loss(
        self,
        dictionary: Dictionary,
        encodings: Sequence[Encoding],
        x_BI: Tensor,
        y_BO: Tensor,
        coefficient: float,
        p: float = 1.0,
    ) -> Loss:
        """``reconstruction + coefficient · sparsity`` (+ Gated's auxiliary reconstruction) of target ``y_BO``.

        Reconstruction: ``Σ_tokens w_t Σ_d s_d e_td²`` with the weights ``reconstruction`` names (``token_weights``) and
        site weights s; with levels the weighted sum over levels. Gated adds
        ``mean ‖y - (ReLU(π) sg(W_dec) + sg(b_dec))‖²`` (Rajamanoharan et al. 2024, arXiv 2404.16014, equation 8), whose
        gradient does not reach the decoder. ``coefficient`` is the current λ, ``p`` the current power.
        """
        parts = dictionary.parts
        weights = token_weights(self.config.reconstruction, y_BO)
        if self.site_weights_O is not None:
            weights = weights * self.site_weights_O
        grouped: list[Levels | None] = [self._levels(part.coder, e) for part, e in zip(parts, encodings, strict=True)]
        out = _output(dictionary, parts, encodings, grouped, x_BI)
        if self.config.levels is None:
            error = y_BO - out
            terms = {"mse": (weights * error.square()).sum()}
            g_out = weights * error * -2
        else:
            errors_BGO = y_BO.unsqueeze(1) - out
            level_weights = y_BO.new_tensor(_level_weights(self.config.levels, out.shape[1])).reshape(-1, 1)
            terms = {"mse": (weights.unsqueeze(1) * level_weights * errors_BGO.square()).sum()}
            g_out = weights.unsqueeze(1) * level_weights * errors_BGO * -2
            error = errors_BGO[:, -1]
        gate_error = _gate_error(dictionary, parts, encodings, x_BI, y_BO)
        if gate_error is not None:
            terms["gate_mse"] = (weights * gate_error.square()).sum()
        gradients, penalties = [], []
        for part, encoding, levels in zip(parts, encodings, grouped, strict=True):
            own = LatentGradients()
            if self.sparsity is not None:
                found = penalty(part.coder, encoding, self.sparsity, coefficient, p)
                penalties.append(found.value)
                own = found.gradients
            gate = encoding.selection.gate
            if gate is not None and gate_error is not None:
                through = sampled_products(gate, part.take(gate_error * weights * -2), part.coder.W_dec)
                own = replace_gate(own, through if own.gate is None else own.gate + through)
            gradients.append(PartGradients(part.take(g_out), own, levels))
        total = torch.stack(penalties).sum() if penalties else None
        if total is not None and self.sparsity is not None:
            terms[type(self.sparsity).__name__.lower()] = coefficient * total
        energies = None
        if total is not None:
            missed = error if gate_error is None else gate_error
            made = y_BO - missed - add_offset(dictionary, torch.zeros_like(y_BO), x_BI)
            energies = torch.stack([made.square().sum(), missed.square().sum()])
        return Loss(terms, total, error, weights, g_out, tuple(gradients), energies)

    def _levels(self, coder: SparseCoder, encoding: Encoding) -> Levels | None:
        match self.config.levels:
            case Matryoshka():
                return prefix_levels(encoding.latents, self.config.levels.bounds(coder.d_sae))
            case HierarchicalTopK():
                return budget_levels(encoding.latents, self.config.levels.budgets)
        return None


def token_weights(kind: str, y_BO: Tensor) -> Tensor:
    """What a token's squared error is multiplied by, ``[B, 1]``: see ``TrainingConfig.reconstruction``."""
    n_tokens, width = max(1, y_BO.shape[0]), y_BO.shape[1]
    one = y_BO.new_ones(y_BO.shape[0], 1) / n_tokens
    match kind:
        case "sum_of_squares":
            return one
        case "mean_per_dimension":
            return one / width
        case "by_norm":
            return one / (width * y_BO.norm(dim=1, keepdim=True).clamp(min=1e-6))
        case "by_batch_deviation":
            return one / ((y_BO - y_BO.mean(0)).norm(dim=1, keepdim=True) + 1e-6)
    raise AssertionError(kind)


def replace_gate(own: LatentGradients, gate: Tensor) -> LatentGradients:
    """``own`` with another gradient of the gate."""
    return LatentGradients(own.latents, own.near, own.near_step, gate, own.window, own.W_dec)


def _output(
    dictionary: Dictionary,
    parts: Sequence[Part],
    encodings: Sequence[Encoding],
    grouped: Sequence[Levels | None],
    x_BI: Tensor,
) -> Tensor:
    """``ŷ [B, O]``, or ``[B, G, O]`` with levels."""
    first = grouped[0]
    shape = (len(x_BI), dictionary.d_out) if first is None else (len(x_BI), first.n_levels, dictionary.d_out)
    out = x_BI.new_zeros(shape)
    for part, encoding, levels in zip(parts, encodings, grouped, strict=True):
        weight = part.coder.W_dec
        part.add_to_(out, decode(encoding.latents, weight) if levels is None else decode_levels(levels, weight))
    return add_offset(dictionary, out, x_BI)


def _gate_error(
    dictionary: Dictionary, parts: Sequence[Part], encodings: Sequence[Encoding], x_BI: Tensor, y_BO: Tensor
) -> Tensor | None:
    """``y`` less what the gates' values decode to; None where there are no gates."""
    out = torch.zeros_like(y_BO)
    for part, encoding in zip(parts, encodings, strict=True):
        gate = encoding.selection.gate
        if gate is None:
            return None
        part.add_to_(out, decode(gate, part.coder.W_dec))
    return y_BO - add_offset(dictionary, out, x_BI)


def _level_weights(levels: LevelsConfig, n_levels: int) -> tuple[float, ...]:
    if levels.weights is not None:
        if len(levels.weights) != n_levels:
            raise ConfigError(f"{type(levels).__name__}: {len(levels.weights)} weights for {n_levels} levels")
        return levels.weights
    return (1.0,) * n_levels if isinstance(levels, Matryoshka) else (1 / n_levels,) * n_levels
