"""Dense twins of the sparse kernels: the definition each fast path is tested against.

Shape letters: B tokens, F latents, D output width, E active entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.kernels.latents import Latents, latents_from_mask


def decode_dense(latents: Latents, weight_FD: Tensor) -> Tensor:
    """``f @ weight`` with the dense ``f [B, F]``: ``[B, D]``."""
    return latents.to_dense().reshape(-1, latents.d_sae).to(weight_FD.dtype) @ weight_FD


def sampled_products_dense(latents: Latents, left_BD: Tensor, weight_FD: Tensor) -> Tensor:
    """``(left @ weight.T)`` at the active entries: ``[E]``."""
    return (left_BD @ weight_FD.T)[latents.rows(), latents.indices.long()]


def weight_gradient_dense(latents: Latents, table_BD: Tensor) -> Tensor:
    """``f.T @ table``: ``[F, D]``."""
    return latents.to_dense().reshape(-1, latents.d_sae).T.to(table_BD.dtype) @ table_BD


def row_top_k_dense(pre_BF: Tensor, k: int) -> Latents:
    """The k largest positive entries of each row; ties go to the lower latent."""
    order = pre_BF.sort(dim=1, descending=True, stable=True).indices[:, :k]
    chosen = torch.zeros_like(pre_BF, dtype=torch.bool).scatter_(1, order, True)
    return latents_from_mask(pre_BF, chosen & (pre_BF > 0))


def batch_top_k_dense(pre_BF: Tensor, n_entries: int) -> Latents:
    """The ``n_entries`` largest positive entries of the batch; ties go to the lower token, then latent."""
    flat = pre_BF.reshape(-1)
    order = flat.sort(descending=True, stable=True).indices[:n_entries]
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order, True).reshape(pre_BF.shape)
    return latents_from_mask(pre_BF, chosen & (pre_BF > 0))
