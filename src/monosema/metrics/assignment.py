"""The best pairing of rows and columns (the Hungarian method)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import ShapeError
from monosema.metrics.checks import require_finite


def best_assignment(scores: Tensor) -> Tensor:
    """The column of each row of ``scores [n, m]`` in the pairing with the largest sum ``[n]`` int64.

    A column is given to one row at most; where ``n > m``, ``n - m`` rows get -1. Exact, by shortest augmenting paths
    (Jonker and Volgenant 1987), in ``O(min(n, m)² max(n, m))``: a second for 1,000 by 1,000. Of several best pairings
    the one found depends on ``scores`` only.

    Raises ``ShapeError`` unless ``scores`` is a matrix that is not empty, ``DataError`` where it is not finite.
    """
    if scores.dim() != 2 or 0 in scores.shape:
        raise ShapeError(f"scores must be [n, m] with at least one row and column, got {list(scores.shape)}")
    require_finite("scores", scores)
    cost = -scores.detach().cpu().double().numpy()
    n, m = cost.shape
    if n <= m:
        return torch.from_numpy(_columns(cost))
    rows = _columns(np.ascontiguousarray(cost.T))
    columns = np.full(n, -1)
    columns[rows] = np.arange(m)
    return torch.from_numpy(columns)


def _columns(cost: np.ndarray) -> np.ndarray:
    """The columns of the cheapest pairing of every row of ``cost [n, m]``, ``n <= m``.

    Rows are added one by one; each takes the cheapest path of exchanges that ends in a free column. ``u`` and ``v`` are
    the prices that keep every reduced cost ``cost - u - v`` non-negative, and zero on the pairs made.
    """
    n, m = cost.shape
    u, v = np.zeros(n), np.zeros(m)
    row_of, column_of = np.full(m, -1), np.full(n, -1)
    for start in range(n):
        distance, came_from, done = np.full(m, np.inf), np.full(m, -1), np.zeros(m, dtype=bool)
        row, so_far, rows = start, 0.0, []
        while True:
            rows.append(row)
            through = so_far + cost[row] - u[row] - v
            nearer = ~done & (through < distance)
            distance[nearer], came_from[nearer] = through[nearer], row
            column = int(np.where(done, np.inf, distance).argmin())
            so_far, done[column] = float(distance[column]), True
            if row_of[column] < 0:
                break
            row = int(row_of[column])
        exchanged = rows[1:]
        u[start] += so_far
        u[exchanged] += so_far - distance[column_of[exchanged]]
        v[done] -= so_far - distance[done]
        while True:
            row = int(came_from[column])
            row_of[column] = row
            column, column_of[row] = int(column_of[row]), column
            if row == start:
                break
    return column_of
