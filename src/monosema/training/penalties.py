"""Sparsity losses and the gradients they hand to a coder. Pure.

Shape letters: B tokens, F latents, S sites written, O output width, E entries looked at, N near-threshold entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never, final

import torch
from torch import Tensor

from monosema.coders import Encoding, LatentGradients, SparseCoder
from monosema.coders.activations.base import Selection
from monosema.kernels import Latents
from monosema.training.term import Batch, OnBatch, OnPart
from monosema.training.terms import L0, L1, Lp, QuadraticL0, RatioL0, Sparsity, Tanh, Weighting


@dataclass(frozen=True)
class Penalty:
    """One sparsity loss on one batch."""

    value: Tensor
    """0-d: the penalty without its coefficient."""
    gradients: LatentGradients
    """∂(coefficient · penalty)/∂latents."""


@final
@dataclass(frozen=True)
class SparsityTerm:
    """``λ · Σ over parts of penalty``, with the current λ."""

    sparsity: Sparsity
    """The loss."""

    @property
    def name(self) -> str:
        return type(self.sparsity).__name__.lower()

    def on(self, batch: Batch) -> OnBatch:
        """The penalties of all parts at once, as their sum is the term."""
        pairs = zip(batch.dictionary.parts, batch.encodings, strict=True)
        found = [penalty(part.coder, each, self.sparsity, batch.coefficient, batch.p) for part, each in pairs]
        total = torch.stack([each.value for each in found]).sum()
        return OnBatch(batch.coefficient * total, None, lambda number: OnPart((found[number].gradients,)), total)


def needed_window(sparsity: Sparsity | None) -> float | None:
    """The window around the threshold that the loss needs entries from, where no threshold is learned."""
    return sparsity.bandwidth if isinstance(sparsity, (L0, QuadraticL0, RatioL0)) else None


@torch.no_grad()
def penalty(coder: SparseCoder, encoding: Encoding, sparsity: Sparsity, coefficient: float, p: float = 1.0) -> Penalty:
    """``sparsity`` of ``encoding`` and its gradients times ``coefficient``; ``p`` is the current power of ``Lp``."""
    selection = encoding.selection
    if isinstance(sparsity, (L0, QuadraticL0, RatioL0)):
        return _count_penalty(selection, sparsity, coefficient)
    entries = selection.penalised
    n_tokens = max(1, entries.n_tokens)
    weights_F, norms_FS = norm_weights(coder, sparsity.weighting)
    weights = weights_F[entries.indices.long()]
    v = entries.values.abs() * weights
    value, factor = _value(sparsity, v, entries, p), _token_factor(sparsity, v, entries, p)
    slope = _slope(sparsity, v, factor, entries, p)
    share = coefficient / n_tokens
    g_entries = share * slope * weights * entries.values.sign()
    g_near = None
    if selection.near is not None and coder.activation.learns_threshold:
        assert selection.near_activations is not None
        near_weights = weights_F[selection.near.indices.long()]
        at = selection.near_activations * near_weights
        if isinstance(
            sparsity, Lp
        ):  # its slope at zero may be infinite: taken where the entry would be, were it active
            threshold = torch.as_tensor(coder.activation.thresholds()).expand(coder.d_sae)
            at = (selection.near.values + threshold[selection.near.indices.long()]) * near_weights
        g_near = share * _slope(sparsity, at, factor, selection.near, p)
        g_near = g_near * near_weights
    decoder_scale = None
    if norms_FS is not None:
        mass = torch.zeros_like(weights_F).index_add_(0, entries.indices.long(), share * slope * entries.values.abs())
        decoder_scale = mass.unsqueeze(1) / norms_FS.clamp(min=1e-8)
    if selection.gate is not None:
        own = LatentGradients(gate=g_entries, decoder_scale=decoder_scale)
    else:
        own = LatentGradients(latents=g_entries, near=g_near, decoder_scale=decoder_scale)
    return Penalty(value / n_tokens, own)


def norm_weights(coder: SparseCoder, weighting: Weighting) -> tuple[Tensor, Tensor | None]:
    """``[F]`` what multiplies each latent's activations, and the norms it is the sum of, ``[F, S]`` or ``[F, 1]``."""
    match weighting:
        case "none":
            return torch.ones_like(coder.W_dec[:, 0]), None
        case "concatenated_norm":
            norms_FS = coder.W_dec.norm(dim=1, keepdim=True)
        case "decoder_norm":
            norms_FS = coder.site_norms()
        case _:
            assert_never(weighting)
    return norms_FS.sum(1), norms_FS


def _powers(v: Tensor, entries: Latents, p: float) -> Tensor:
    """``Σ_i v_i^p`` of each token: ``[B]``."""
    return v.new_zeros(entries.n_tokens).index_add_(0, entries.rows(), v.pow(p))


def _value(sparsity: L1 | Lp | Tanh, v: Tensor, entries: Latents, p: float) -> Tensor:
    """The penalty of entries ``v [E] ≥ 0``, summed over tokens: 0-d."""
    match sparsity:
        case L1():
            return v.sum()
        case Tanh():
            return (sparsity.scale * v).tanh().sum()
        case Lp():
            return _powers(v, entries, p).pow(1 / p if sparsity.root else 1).sum()
        case _:
            assert_never(sparsity)


def _token_factor(sparsity: L1 | Lp | Tanh, v: Tensor, entries: Latents, p: float) -> Tensor | None:
    """What the p-th root multiplies a token's slopes by, ``[B]``; None without a root."""
    if not (isinstance(sparsity, Lp) and sparsity.root):
        return None
    return _powers(v, entries, p).clamp(min=_floor(v)).pow(1 / p - 1) / p


def _slope(sparsity: L1 | Lp | Tanh, v: Tensor, factor: Tensor | None, entries: Latents, p: float) -> Tensor:
    """The penalty's derivative at ``v [E]`` of ``entries``, given the token factors."""
    match sparsity:
        case L1():
            return torch.ones_like(v)
        case Tanh():
            return sparsity.scale * (1 - (sparsity.scale * v).tanh().square())
        case Lp():
            slope = p * v.clamp(min=_floor(v)).pow(p - 1)
            return slope if factor is None else factor[entries.rows()] * slope
        case _:
            assert_never(sparsity)


def _floor(v: Tensor) -> float:
    return float(torch.finfo(v.dtype).tiny ** 0.5)


def _count_penalty(selection: Selection, sparsity: L0 | QuadraticL0 | RatioL0, coefficient: float) -> Penalty:
    entries, near = selection.penalised, selection.near
    assert near is not None, "a loss on L0 needs the entries near the threshold"
    n_tokens = max(1, entries.n_tokens)
    counts = entries.crow.diff().to(entries.values.dtype)
    match sparsity:
        case L0():
            value, g_token = counts.sum() / n_tokens, torch.full_like(counts, coefficient / n_tokens)
        case QuadraticL0():
            off = counts - sparsity.target
            value = (2 / sparsity.target) * off.square().sum() / n_tokens
            g_token = coefficient * (4 / sparsity.target) * off / n_tokens
        case RatioL0():
            off = counts.sum() / n_tokens / sparsity.target - 1
            value = off.square()
            g_token = (coefficient * 2 / (sparsity.target * n_tokens) * off).expand_as(counts)
        case _:
            assert_never(sparsity)
    return Penalty(value, LatentGradients(near_step=g_token[near.rows()], window=sparsity.bandwidth))
