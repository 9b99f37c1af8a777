"""Data-dependent starting values: the geometric median."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.errors import DataError


@dataclass(frozen=True)
class GeometricMedian:
    """Where Weiszfeld's iteration ended."""

    median: Tensor
    """[d]: the point with the least (weighted) sum of distances."""
    n_iterations: int
    """Iterations made."""
    objective: list[float]
    """Weighted mean distance before each iteration."""
    converged: bool
    """Whether the objective's relative change fell under the tolerance."""


def geometric_median(
    points: Tensor, weights: Tensor | None = None, *, max_iterations: int = 100, tolerance: float = 1e-6
) -> GeometricMedian:
    """``argmin_m Σ w_i ‖x_i - m‖`` over ``points [n, d]`` by Weiszfeld's iteration, in float64.

    ``weights [n]`` are non-negative (1 by default). Points that coincide with the estimate are held a small distance
    away. Raises ``DataError`` for no points or values that are not finite. Source: Weiszfeld 1937; Pillutla et al.
    2022, arXiv 1912.13445, algorithm 1.
    """
    if points.ndim != 2 or points.shape[0] == 0:
        raise DataError(f"geometric_median: expected points [n, d] with n > 0, got {list(points.shape)}")
    x = points.double()
    if not bool(torch.isfinite(x).all()):
        raise DataError("geometric_median: the points are not all finite")
    w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    median = (w.unsqueeze(1) * x).sum(0) / w.sum()
    objective: list[float] = []
    for iteration in range(max_iterations):
        distances = (x - median).norm(dim=1)
        objective.append(float((w * distances).sum() / w.sum()))
        if iteration > 0 and abs(objective[-2] - objective[-1]) <= tolerance * objective[-2]:
            return GeometricMedian(median.to(points.dtype), iteration, objective, True)
        pull = w / distances.clamp(min=1e-10)
        median = (pull.unsqueeze(1) * x).sum(0) / pull.sum()
    return GeometricMedian(median.to(points.dtype), max_iterations, objective, False)
