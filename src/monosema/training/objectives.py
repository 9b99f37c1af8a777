"""The loss of a batch and the gradients it hands to the coder. Pure: nothing here changes state.

Shape letters: B tokens, G nested levels, O output width, F latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Encoding, LatentGradients, SparseCoder, TrainableDictionary
from monosema.coders.parts import Part
from monosema.core.devices import constant
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
    def of(cls, dictionary: TrainableDictionary, config: TrainingConfig, sparsity: Sparsity | None) -> Objective:
        """Check what depends on the dictionary's shape and spread site weights over dimensions."""
        weights, widths = config.site_weights, dictionary.write_widths
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
        dictionary: TrainableDictionary,
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
        bias = dictionary.offset(x_BI)
        errors = _errors(dictionary, parts, encodings, grouped, y_BO, bias)
        error = errors
        if self.config.levels is not None:
            given = _level_weights(self.config.levels, errors.shape[1])
            level_weights = constant(given, y_BO.dtype, y_BO.device).reshape(-1, 1)
            weights_of_all, error = weights.unsqueeze(1) * level_weights, errors[:, -1]
        else:
            weights_of_all = weights
        terms = {"mse": weighted_squares(errors, weights_of_all)}
        g_out = errors * (weights_of_all * -2)
        gate_error = _gate_error(parts, encodings, y_BO, bias)
        if gate_error is not None:
            terms["gate_mse"] = weighted_squares(gate_error, weights)
        gradients, penalties = [], []
        for part, encoding, levels in zip(parts, encodings, grouped, strict=True):
            own = LatentGradients()
            if self.sparsity is not None:
                found = penalty(part.coder, encoding, self.sparsity, coefficient, p)
                penalties.append(found.value)
                own = found.gradients
            gate = encoding.selection.gate
            if gate is not None and gate_error is not None:
                through = sampled_products(gate, part.take(gate_error * (weights * -2)), part.coder.W_dec)
                own = replace_gate(own, through if own.gate is None else own.gate + through)
            gradients.append(PartGradients(part.take(g_out), own, levels))
        total = torch.stack(penalties).sum() if penalties else None
        if total is not None and self.sparsity is not None:
            terms[type(self.sparsity).__name__.lower()] = coefficient * total
        energies = None
        if total is not None:
            missed = error if gate_error is None else gate_error
            made = y_BO - missed - bias
            energies = torch.stack([torch.linalg.vector_norm(each).square() for each in (made, missed)])
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
    return LatentGradients(own.latents, own.near, own.near_step, gate, own.window, own.decoder_scale)


def weighted_squares(error: Tensor, weights: Tensor) -> Tensor:
    """``Σ w e²``; ``weights [..., 1]`` of whole tokens, or ``[..., O]``: 0-d."""
    if weights.shape[-1] == 1:
        return (weights * torch.linalg.vector_norm(error, dim=-1, keepdim=True).square()).sum()
    return (weights * error.square()).sum()


def _errors(
    dictionary: TrainableDictionary,
    parts: Sequence[Part[SparseCoder]],
    encodings: Sequence[Encoding],
    grouped: Sequence[Levels | None],
    y_BO: Tensor,
    bias: Tensor,
) -> Tensor:
    """``y - ŷ``: ``[B, O]``, or ``[B, G, O]`` with levels."""
    decoded = (
        decode(encoding.latents, part.coder.W_dec) if levels is None else decode_levels(levels, part.coder.W_dec)
        for part, encoding, levels in zip(parts, encodings, grouped, strict=True)
    )
    if not dictionary.is_layered:
        out = next(decoded)
    else:
        out = y_BO.new_zeros(y_BO.shape if grouped[0] is None else (len(y_BO), grouped[0].n_levels, y_BO.shape[1]))
        for part, part_out in zip(parts, decoded, strict=True):
            part.add_to_(out, part_out)
    target = y_BO - bias if out.ndim == 2 else (y_BO - bias).unsqueeze(1)
    return torch.sub(target, out, out=out) if out.dtype == target.dtype else target - out


def _gate_error(
    parts: Sequence[Part[SparseCoder]], encodings: Sequence[Encoding], y_BO: Tensor, bias: Tensor
) -> Tensor | None:
    """``y`` less what the gates' values decode to; None where there are no gates."""
    out = torch.zeros_like(y_BO)
    for part, encoding in zip(parts, encodings, strict=True):
        gate = encoding.selection.gate
        if gate is None:
            return None
        part.add_to_(out, decode(gate, part.coder.W_dec))
    return y_BO - bias - out


def _level_weights(levels: LevelsConfig, n_levels: int) -> tuple[float, ...]:
    if levels.weights is not None:
        if len(levels.weights) != n_levels:
            raise ConfigError(f"{type(levels).__name__}: {len(levels.weights)} weights for {n_levels} levels")
        return levels.weights
    return (1.0,) * n_levels if isinstance(levels, Matryoshka) else (1 / n_levels,) * n_levels
