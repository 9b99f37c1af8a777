"""Data-dependent starting values: the geometric median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.core.finite import all_finite
from monosema.core.peers import explains_options
from monosema.core.words import counted

Points = Tensor | np.ndarray


@dataclass(frozen=True)
class GeometricMedian:
    """Where Weiszfeld's iteration ended."""

    median: Tensor | list[Tensor]
    """[d]: the point with the least (weighted) sum of distances; for a list of points, one for each."""
    n_iterations: int
    """Iterations made (the most of any component)."""
    objective: list[float]
    """Weighted mean distance before each iteration (with ``per_component``, of the slowest component)."""
    termination: Literal["converged", "max_iterations"]
    """Why it ended: the objective's relative change fell under the tolerance, or the iterations ran out."""

    @property
    def converged(self) -> bool:
        return self.termination == "converged"


@explains_options
def geometric_median(
    points: Points | Sequence[Points],
    weights: Points | None = None,
    *,
    per_component: bool = False,
    differentiable: bool = False,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
) -> GeometricMedian:
    """``argmin_m Σ w_i ‖x_i - m‖`` over ``points [n, d]`` by Weiszfeld's iteration, in float64 on the points' device.

    ``weights [n]`` are non-negative (1 by default). A list of points ``[n, d_j]`` is one point set of width ``Σ d_j``
    whose median is given back in the same pieces; with ``per_component`` each entry has a median of its own.
    ``differentiable`` lets gradients pass through the iterations. An estimate that meets a point stays there only if
    that point is the median. Raises ``DataError`` for no points, values that are not finite, or weights that are
    negative or all zero. Source: Weiszfeld 1937, with the correction of Vardi and Zhang 2000
    (doi 10.1073/pnas.97.4.1423).
    """
    several = not isinstance(points, (Tensor, np.ndarray))
    given = [torch.as_tensor(each) for each in (points if several else [points])]
    if not given:
        raise DataError("geometric_median: the list of points is empty")
    for each in given:
        if each.ndim != 2 or each.shape[0] == 0:
            raise DataError(f"geometric_median: expected points [n, d] with n > 0, got {list(each.shape)}")
        if len(each) != len(given[0]):
            raise DataError(
                f"geometric_median: {counted(len(each), 'point')} beside {len(given[0])}; give as many in each entry"
            )
    w = None if weights is None else torch.as_tensor(weights)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        if per_component:
            each_found = [_weiszfeld(each, w, max_iterations, tolerance) for each in given]
        else:
            each_found = [_weiszfeld(torch.cat([each.double() for each in given], 1), w, max_iterations, tolerance)]
    medians = [part for found in each_found for part in found.pieces]
    if not per_component:
        medians = list(medians[0].split([each.shape[1] for each in given]))
    medians = [median.to(each.dtype) for median, each in zip(medians, given, strict=True)]
    slowest = max(each_found, key=lambda found: len(found.objective))
    return GeometricMedian(
        medians if several else medians[0],
        max(found.n_iterations for found in each_found),
        slowest.objective,
        "converged" if all(found.converged for found in each_found) else "max_iterations",
    )


@dataclass(frozen=True)
class _Found:
    pieces: tuple[Tensor, ...]
    n_iterations: int
    objective: list[float]
    converged: bool


def _weiszfeld(points: Tensor, weights: Tensor | None, max_iterations: int, tolerance: float) -> _Found:
    x = points.double()
    if not all_finite(x):
        raise DataError("geometric_median: the points are not all finite")
    w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double().to(x.device)
    if w.shape != x.shape[:1] or not (bool((w >= 0).all()) and 0 < float(w.detach().sum()) < math.inf):
        raise DataError(f"geometric_median: weights must be [{len(x)}], finite, not negative, and not all zero")
    median = (w.unsqueeze(1) * x).sum(0) / w.sum()
    objective: list[float] = []
    for iteration in range(max_iterations):
        distances = (x - median).norm(dim=1)
        objective.append(float(((w * distances).sum() / w.sum()).detach()))
        if iteration > 0 and abs(objective[-2] - objective[-1]) <= tolerance * objective[-2]:
            return _Found((median,), iteration, objective, True)
        met = distances < 1e-10
        pull = torch.where(met, 0, w / distances.clamp(min=1e-10))
        force = (pull.unsqueeze(1) * (x - median)).sum(0)
        held = (w[met].sum() / force.norm().clamp(min=1e-300)).clamp(max=1)
        median = median + (1 - held) * force / pull.sum().clamp(min=1e-300)
    return _Found((median,), max_iterations, objective, False)
