"""Logistic regression against its conditions of optimality and closed cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.evaluation.benchmarks.logistic import LogisticFit, fit_logistic


def cloud(n: int = 300, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    labels = x[:, 0] - 0.5 * x[:, 1] + torch.randn(n, generator=generator, dtype=torch.float64) > 0.3
    return x, labels


def gradient(x: Tensor, labels: Tensor, C: float, fit: LogisticFit) -> tuple[Tensor, Tensor]:
    """Of scikit-learn's objective with respect to weights and bias, zero at its minimum."""
    error = torch.sigmoid(x @ fit.weights + fit.bias) - labels.double()
    return fit.weights + C * (x.T @ error), C * error.sum()


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_the_objective_is_at_its_minimum(C: float) -> None:
    x, labels = cloud()
    fit = fit_logistic(x, labels, C)
    assert fit.converged
    for each in gradient(x, labels, C, fit):
        assert float(each.abs().max()) < 1e-3


def test_columns_of_very_different_size_reach_it_too() -> None:
    x, labels = cloud()
    x = x * torch.tensor([1.0, 1e3, 1e-3, 1, 30, 0.1], dtype=torch.float64) + torch.tensor([0.0, 5e3, 0, 100, 0, 0])
    fit = fit_logistic(x, labels)
    assert fit.converged
    by_weight, by_bias = gradient(x, labels, 1.0, fit)
    assert abs(float(by_bias)) < 1e-3
    scale = (1 + (x - x.mean(0)).square().sum(0) / 4).rsqrt()
    assert float((by_weight * scale).abs().max()) < 1e-2


def test_two_symmetric_points_have_a_closed_solution() -> None:
    # ½ w² + 2 log(1 + exp(-w)): w = 2 / (1 + exp(w)), solved by bisection.
    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < 2 / (1 + math.exp(middle)) else (low, middle)
    fit = fit_logistic(torch.tensor([[1.0], [-1.0]]), torch.tensor([True, False]))
    assert float(fit.weights[0]) == pytest.approx(low, abs=1e-5)
    assert fit.bias == pytest.approx(0, abs=1e-6)


def test_without_information_the_bias_is_the_log_odds() -> None:
    labels = torch.tensor([True] * 30 + [False] * 10)
    fit = fit_logistic(torch.full((40, 2), 7.0), labels)
    assert fit.weights.tolist() == [0, 0]
    assert fit.bias == pytest.approx(math.log(3), abs=1e-4)
    assert fit.margins(torch.full((1, 2), 7.0)).tolist() == pytest.approx([math.log(3)], abs=1e-4)


def test_it_works_inside_no_grad_and_says_when_it_stopped_early() -> None:
    x, labels = cloud()
    with torch.no_grad():
        assert fit_logistic(x, labels).converged
    assert not fit_logistic(x, labels, max_iterations=1).converged


def test_bad_input_is_refused() -> None:
    x, labels = cloud(4)
    with pytest.raises(DataError, match="both classes, got 4 of one"):
        fit_logistic(x, torch.ones(4, dtype=torch.bool))
    with pytest.raises(DataError, match="both classes, got 0 of one"):
        fit_logistic(x[:0], labels[:0])
    with pytest.raises(DataError, match="activations must be finite"):
        fit_logistic(x * math.nan, torch.tensor([True, False, True, False]))
    with pytest.raises(ShapeError, match="must be"):
        fit_logistic(x, labels[:3])
    with pytest.raises(ConfigError, match="C must be above 0"):
        fit_logistic(x, labels, 0.0)
