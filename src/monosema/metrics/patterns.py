"""How far a head's attention moves: the KL divergence of attention patterns."""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.core.errors import ShapeError
from monosema.metrics.checks import wide


def pattern_kl(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q) = sum_k p_k (log p_k - log q_k)`` of each query, in nats; divide by ln 2 for bits.

    ``p`` and ``q`` ``[..., T]`` are what queries give to each of T keys; ``p`` is the clean run. Rows are divided by
    their sums first, which rounding leaves near 1. Gives ``[...]`` float64, in [0, inf), exactly 0 where ``p`` is
    ``q``. A masked key, 0 in both, contributes 0. Weights under the smallest number of their dtype, or of float32,
    count as that number inside logarithms: a softmax that underflows leaves a large divergence (103 nats at most), not
    an infinite one. Raises ``ShapeError`` where shapes differ.
    """
    if p.shape != q.shape or p.dim() == 0:
        raise ShapeError(f"p and q must be patterns of one shape [..., T], got {list(p.shape)} and {list(q.shape)}")
    floor = _smallest(p.dtype, q.dtype)
    p, q = (each / each.sum(-1, keepdim=True) for each in (wide(p), wide(q).to(p.device)))
    return (p * (p.clamp_min(floor).log() - q.clamp_min(floor).log())).sum(-1)


def _smallest(*dtypes: torch.dtype) -> float:
    """The smallest positive number that all the dtypes and float32 have, in which most models take a softmax."""
    return max(info.tiny * info.eps for info in map(torch.finfo, (torch.float32, *dtypes)))
