"""The loss of a batch and the gradients it hands to the coder. Pure: nothing here changes state.

Shape letters: B tokens, G nested levels, O output width, F latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never, final

import torch
from torch import Tensor

from monosema.coders import Encoding, LatentGradients, SparseCoder, TrainableDictionary
from monosema.coders.parts import Part
from monosema.core.devices import constant
from monosema.core.errors import ConfigError
from monosema.core.words import counted
from monosema.kernels import Levels, budget_levels, decode, decode_levels, prefix_levels, sampled_products
from monosema.training.config import TrainingConfig
from monosema.training.penalties import SparsityTerm
from monosema.training.term import Batch, OnBatch, OnPart, Term
from monosema.training.terms import HierarchicalTopK, LevelsConfig, Matryoshka, Sparsity

if TYPE_CHECKING:
    from monosema.training.revive import Dead


@dataclass(frozen=True)
class Loss:
    """Loss terms of one batch and their gradients."""

    terms: dict[str, Tensor]
    """0-d values by name, ``mse`` first: those that are known before parts are asked."""
    penalty: Tensor | None
    """0-d: the sparsity penalty without its coefficient."""
    error_BO: Tensor
    """``y - ŷ``."""
    weights_BO: Tensor
    """What the squared errors are multiplied by; broadcasts over ``[B, O]``."""
    g_out: Tensor
    """∂loss/∂ŷ: ``[B, O]``, or ``[B, G, O]`` with levels."""
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
                raise ConfigError(
                    f"{len(weights)} site_weights for {counted(len(widths), 'site')} written; give one for each"
                )
            each = torch.tensor(weights, dtype=dictionary.dtype, device=dictionary.device)
            spread = each.repeat_interleave(torch.tensor(widths, device=dictionary.device))
        if isinstance(config.levels, Matryoshka):
            for part in dictionary.parts:
                _level_weights(config.levels, len(config.levels.bounds(part.coder.d_sae)))
        return cls(config, sparsity, spread)

    @property
    def terms(self) -> tuple[Term, ...]:
        """Reconstruction, Gated's auxiliary reconstruction and sparsity."""
        sparsity = () if self.sparsity is None else (SparsityTerm(self.sparsity),)
        return (Reconstruction(self.config.levels), GateReconstruction(), *sparsity)

    @torch.no_grad()
    def batch(
        self,
        dictionary: TrainableDictionary,
        encodings: Sequence[Encoding],
        x_BI: Tensor,
        y_BO: Tensor,
        coefficient: float,
        p: float = 1.0,
        dead: Sequence[Dead] = (),
    ) -> Batch:
        """What terms are computed from; ``coefficient`` is the current λ, ``p`` the current power."""
        parts = dictionary.parts
        weights = token_weights(self.config.reconstruction, y_BO)
        if self.site_weights_O is not None:
            weights = weights * self.site_weights_O
        grouped: list[Levels | None] = [self._levels(part.coder, e) for part, e in zip(parts, encodings, strict=True)]
        bias = dictionary.offset(x_BI)
        errors = _errors(dictionary, parts, encodings, grouped, y_BO, bias)
        error = errors if self.config.levels is None else errors[:, -1]
        gate_error = _gate_error(parts, encodings, y_BO, bias)
        return Batch(
            dictionary, encodings, y_BO, bias, grouped, errors, error, gate_error, weights, coefficient, p, dead
        )

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
        """``reconstruction + coefficient · sparsity`` (+ Gated's auxiliary reconstruction) of target ``y_BO``."""
        return asked(self.terms, self.batch(dictionary, encodings, x_BI, y_BO, coefficient, p))[0]

    def _levels(self, coder: SparseCoder, encoding: Encoding) -> Levels | None:
        match self.config.levels:
            case Matryoshka():
                return prefix_levels(encoding.latents, self.config.levels.bounds(coder.d_sae))
            case HierarchicalTopK():
                return budget_levels(encoding.latents, self.config.levels.budgets)
            case None:
                return None
            case _:
                assert_never(self.config.levels)


@final
@dataclass(frozen=True)
class Reconstruction:
    """``Σ_tokens w_t Σ_d s_d e_td²`` with the weights ``reconstruction`` names (``token_weights``) and site weights s;
    with levels the weighted sum over levels."""

    levels: LevelsConfig | None
    """The nested reconstructions."""
    name: str = "mse"
    """Of the term."""

    def on(self, batch: Batch) -> OnBatch:
        """All of it comes through the output."""
        errors, weights = batch.errors, batch.weights_BO
        if self.levels is not None:
            given = _level_weights(self.levels, errors.shape[1])
            level_weights = constant(given, batch.y_BO.dtype, batch.y_BO.device).reshape(-1, 1)
            weights = weights.unsqueeze(1) * level_weights
        return OnBatch(weighted_squares(errors, weights), errors * (weights * -2))


@final
@dataclass(frozen=True)
class GateReconstruction:
    """``mean ‖y - (ReLU(π) sg(W_dec) + sg(b_dec))‖²``, whose gradient does not reach the decoder (Rajamanoharan et al.
    2024, arXiv 2404.16014, equation 8)."""

    name: str = "gate_mse"
    """Of the term."""

    def on(self, batch: Batch) -> OnBatch | None:
        """None where there are no gates."""
        error, weights, parts = batch.gate_error_BO, batch.weights_BO, batch.dictionary.parts
        if error is None:
            return None
        g_out = error * (weights * -2)

        def of_part(number: int) -> OnPart:
            part, gate = parts[number], batch.encodings[number].selection.gate
            assert gate is not None
            return OnPart((LatentGradients(gate=sampled_products(gate, part.take(g_out), part.coder.W_dec)),))

        return OnBatch(weighted_squares(error, weights), of_part=of_part)


def asked(terms: Sequence[Term], batch: Batch) -> tuple[Loss, list[tuple[str, OnBatch]]]:
    """The loss as far as it is known before parts are asked, and what each term that adds something asks of them."""
    found: list[tuple[str, OnBatch]] = []
    g_out: Tensor | None = None
    penalty_: Tensor | None = None
    for term in terms:
        on = term.on(batch)
        if on is None:
            continue
        found.append((term.name, on))
        if on.value is not None:
            batch.terms[term.name] = on.value
        if on.g_out is not None:
            g_out = on.g_out if g_out is None else _both(g_out, on.g_out)
        penalty_ = penalty_ if on.penalty is None else on.penalty
    assert g_out is not None, "the reconstruction gives one"
    energies = None
    if penalty_ is not None:
        missed = batch.error_BO if batch.gate_error_BO is None else batch.gate_error_BO
        made = batch.y_BO - missed - batch.bias
        energies = torch.stack([torch.linalg.vector_norm(each).square() for each in (made, missed)])
    return Loss(dict(batch.terms), penalty_, batch.error_BO, batch.weights_BO, g_out, energies), found


def _both(g_out: Tensor, other: Tensor) -> Tensor:
    """The gradients of two terms; one of the whole prediction is one of the last level."""
    if g_out.ndim == other.ndim:
        return g_out + other
    levels, whole = (g_out, other) if g_out.ndim > other.ndim else (other, g_out)
    return torch.cat([levels[:, :-1], levels[:, -1:] + whole.unsqueeze(1)], 1)


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
            raise ConfigError(
                f"{type(levels).__name__}: {counted(len(levels.weights), 'weight')} for {counted(n_levels, 'level')}"
            )
        return levels.weights
    return (1.0,) * n_levels if isinstance(levels, Matryoshka) else (1 / n_levels,) * n_levels
