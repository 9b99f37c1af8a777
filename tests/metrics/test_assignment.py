"""The best pairing, against every pairing there is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from monosema.core.errors import DataError, ShapeError
from monosema.metrics import best_assignment


def total(scores: Tensor, columns: Tensor) -> float:
    return sum(float(scores[row, column]) for row, column in enumerate(columns.tolist()) if column >= 0)


def best_total(scores: Tensor) -> float:
    n, m = scores.shape
    if n > m:
        return best_total(scores.T)
    return max(sum(float(scores[i, j]) for i, j in enumerate(way)) for way in itertools.permutations(range(m), n))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (3, 6), (6, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("whole", [False, True])
def test_no_other_pairing_is_better(n: int, m: int, whole: bool) -> None:
    for seed in range(8):
        scores = torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        scores = scores.mul(2).round() if whole else scores  # ties
        columns = best_assignment(scores)
        given = [column for column in columns.tolist() if column >= 0]
        assert len(given) == len(set(given)) == min(n, m)
        assert total(scores, columns) == pytest.approx(best_total(scores), abs=1e-12)


def test_what_is_best_for_each_row_may_not_be_best_for_all() -> None:
    # Row 0 would take column 0 (0.9), which leaves 0.1 to row 1.
    assert best_assignment(torch.tensor([[0.9, 0.8], [0.7, 0.1]])).tolist() == [1, 0]


def test_a_hidden_permutation_is_found() -> None:
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    noise = 0.4 * torch.rand(50, 70, generator=torch.Generator().manual_seed(1))
    scores = noise + torch.eye(70)[order[:50]]
    assert best_assignment(scores).tolist() == order[:50].tolist()


def test_bad_scores_are_refused() -> None:
    for shape in ((0, 3), (3, 0), (3,)):
        with pytest.raises(ShapeError, match="scores must be"):
            best_assignment(torch.zeros(shape))
    with pytest.raises(DataError, match="scores must be finite"):
        best_assignment(torch.tensor([[math.nan, 1.0]]))
