"""Data-dependent starting values: the geometric median."""

from __future__ import annotations

import math
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

    ``weights [n]`` are non-negative (1 by default). An estimate that meets a point stays there only if that point is
    the median. Raises ``DataError`` for no points, values that are not finite, or weights that are negative or all
    zero. Source: Weiszfeld 1937, with the correction of Vardi and Zhang 2000 (doi 10.1073/pnas.97.4.1423).
    """
    if points.ndim != 2 or points.shape[0] == 0:
        raise DataError(f"geometric_median: expected points [n, d] with n > 0, got {list(points.shape)}")
    x = points.double()
    if not bool(torch.isfinite(x).all()):
        raise DataError("geometric_median: the points are not all finite")
    w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    if w.shape != x.shape[:1] or not (bool((w >= 0).all()) and 0 < float(w.sum()) < math.inf):
        raise DataError(f"geometric_median: weights must be [{len(x)}], finite, not negative, and not all zero")
    median = (w.unsqueeze(1) * x).sum(0) / w.sum()
    objective: list[float] = []
    for iteration in range(max_iterations):
        distances = (x - median).norm(dim=1)
        objective.append(float((w * distances).sum() / w.sum()))
        if iteration > 0 and abs(objective[-2] - objective[-1]) <= tolerance * objective[-2]:
            return GeometricMedian(median.to(points.dtype), iteration, objective, True)
        met = distances < 1e-10
        pull = torch.where(met, 0, w / distances.clamp(min=1e-10))
        force = (pull.unsqueeze(1) * (x - median)).sum(0)
        held = (w[met].sum() / force.norm().clamp(min=1e-300)).clamp(max=1)
        median = median + (1 - held) * force / pull.sum().clamp(min=1e-300)
    return GeometricMedian(median.to(points.dtype), max_iterations, objective, False)
