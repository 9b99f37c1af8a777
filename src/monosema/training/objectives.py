"""Losses and the gradients they hand to the coder. Pure: nothing here changes state.

Shape letters: B tokens, O output width, F latents, E active entries, N near-threshold, G open-gate entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Encoding, SparseCoder
from monosema.kernels import decode, sampled_products
from monosema.training.config import L0, L1, Sparsity


@dataclass(frozen=True)
class Loss:
    """Loss terms of one batch and their gradients with respect to the coder's outputs."""

    terms: dict[str, Tensor]
    """0-d values by name, ``mse`` first; they sum to the loss."""
    g_out_BO: Tensor
    """∂loss/∂ŷ."""
    error_BO: Tensor
    """``y - ŷ``."""
    g_latents: Tensor | None = None
    """[E] ∂loss/∂f beyond what comes through ŷ."""
    g_near: Tensor | None = None
    """[N] the same on near-threshold entries, active or not (JumpReLU)."""
    near_step: Tensor | None = None
    """[N] ∂loss/∂1[pre > θ]."""
    g_gate: Tensor | None = None
    """[G] ∂loss/∂gate."""
    g_W_dec: Tensor | None = None
    """[F, O] ∂loss/∂W_dec beyond what comes through ŷ (norm-weighted sparsity with a free decoder)."""

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


def loss(
    coder: SparseCoder,
    encoding: Encoding,
    y_BO: Tensor,
    sparsity: Sparsity | None,
    coefficient: float,
    *,
    unit_norm: bool,
) -> Loss:
    """``mean over tokens of ‖y - ŷ‖² + coefficient · sparsity`` (+ Gated's auxiliary reconstruction).

    ``y_BO`` is the target, ``coefficient`` the current λ. Gated adds ``mean ‖y - (ReLU(π) sg(W_dec) + sg(b_dec))‖²``
    (Rajamanoharan et al. 2024, arXiv 2404.16014, equation 8), whose gradient does not reach the decoder.
    """
    n_tokens = max(1, y_BO.shape[0])
    selection = encoding.selection
    error = y_BO - coder.decode(selection.latents, encoding.raw_BI)
    terms = {"mse": error.square().sum() / n_tokens}
    g_out = error * (-2 / n_tokens)
    g_latents = g_near = near_step = g_gate = g_W_dec = None
    norms = None if unit_norm else coder.W_dec.norm(dim=1)

    if selection.gate is not None:
        gate_out = decode(selection.gate, coder.W_dec)
        gate_error = y_BO - (gate_out if coder.b_dec is None else gate_out + coder.b_dec)
        terms["gate_mse"] = gate_error.square().sum() / n_tokens
        g_gate = sampled_products(selection.gate, gate_error * (-2 / n_tokens), coder.W_dec)

    if isinstance(sparsity, L1):
        entries = selection.gate if selection.gate is not None else selection.latents
        weights = torch.ones_like(entries.values) if norms is None else norms[entries.indices.long()]
        terms["l1"] = (coefficient / n_tokens) * (entries.values * weights).sum()
        g_sparse = (coefficient / n_tokens) * weights
        if selection.gate is not None:
            g_gate = g_gate + g_sparse if g_gate is not None else g_sparse
        else:
            g_latents = g_sparse
            if selection.near is not None:
                near = selection.near
                g_near = torch.ones_like(near.values) if norms is None else norms[near.indices.long()]
                g_near = g_near * (coefficient / n_tokens)
        if norms is not None:  # ∂‖W_i‖/∂W_i = W_i / ‖W_i‖, weighted by the latent's summed activation
            mass = torch.zeros_like(norms).index_add_(0, entries.indices.long(), entries.values)
            g_W_dec = coder.W_dec * (mass * (coefficient / n_tokens) / norms.clamp(min=1e-8)).unsqueeze(1)
    elif isinstance(sparsity, L0):
        assert selection.near is not None
        terms["l0"] = error.new_tensor(coefficient * selection.latents.nnz / n_tokens)
        near_step = torch.full_like(selection.near.values, coefficient / n_tokens)

    return Loss(terms, g_out, error, g_latents, g_near, near_step, g_gate, g_W_dec)
