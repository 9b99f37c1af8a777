"""Cosines with a known dictionary."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.core.errors import DataError, ShapeError
from monosema.metrics import max_cosine, mean_max_cosine, recovered_fraction

TRUTH = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
LEARNED = torch.tensor([[5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])


def test_each_true_direction_takes_its_nearest_learned_one_whatever_their_lengths() -> None:
    expected = torch.tensor([1.0, math.sqrt(0.5), 0.0], dtype=torch.float64)
    torch.testing.assert_close(max_cosine(LEARNED, TRUTH), expected)


def test_a_direction_learned_backwards_is_not_learned() -> None:
    assert mean_max_cosine(torch.tensor([[-1.0, 0.0]]), TRUTH[:1]) == -1


def test_mean_and_share_above_a_bound() -> None:
    assert mean_max_cosine(LEARNED, TRUTH) == pytest.approx((1 + math.sqrt(0.5)) / 3)
    assert recovered_fraction(LEARNED, TRUTH) == pytest.approx(1 / 3)
    assert recovered_fraction(LEARNED, TRUTH, above=0.7) == pytest.approx(2 / 3)


@pytest.mark.parametrize("learned", [torch.ones(3), torch.ones(2, 3), torch.ones(0, 2)])
def test_other_shapes_are_refused(learned: torch.Tensor) -> None:
    with pytest.raises(ShapeError):
        max_cosine(learned, TRUTH)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError):
        max_cosine(LEARNED * math.nan, TRUTH)
