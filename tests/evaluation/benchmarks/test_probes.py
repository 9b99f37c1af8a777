"""Probes on cases whose optimum is known."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.evaluation.benchmarks.probes import balanced_weights, f1_score, fit_probe, unconverged


def test_one_dimension_has_the_root_of_its_derivative():
    """x = ±1, n rows each: the minimum of w²/(2c) + 2n log(1 + e^-w) has w/c = 2n σ(-w), and b = 0."""
    for n, c in ((1, 1.0), (5, 1.0), (5, 0.01)):
        low, high = 0.0, 50.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if middle / c < 2 * n / (1 + math.exp(middle)) else (low, middle)
        x = torch.tensor([[1.0]] * n + [[-1.0]] * n)
        probe = fit_probe(x, x[:, 0] > 0, C=c)
        assert float(probe.weight_D) == pytest.approx(low, abs=1e-6)
        assert probe.bias == pytest.approx(0, abs=1e-6)


def test_rows_that_say_nothing_leave_the_base_rate():
    x, y = torch.ones(8, 3), torch.arange(8) < 2
    probe = fit_probe(x, y)
    assert probe.weight_D.tolist() == pytest.approx([0, 0, 0], abs=1e-7)
    assert probe.bias == pytest.approx(math.log(2 / 6), abs=1e-6)
    assert fit_probe(x, y, weights_N=balanced_weights(y)).bias == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_the_gradient_of_the_objective_vanishes(scale: float):
    generator = torch.Generator().manual_seed(0)
    x = scale * (torch.randn(60, 7, generator=generator).double() + 4)
    y, s = torch.rand(60, generator=generator) < 0.3, torch.rand(60, generator=generator).double()
    probe = fit_probe(x, y, weights_N=s, C=0.5 / scale**2)
    assert probe.converged
    residual = s * (torch.sigmoid(probe.logits(x)) - y.double())
    penalty = probe.weight_D * scale**2 / 0.5
    assert float(((residual @ x + penalty) / scale).abs().max()) < 1e-4
    assert float(residual.sum().abs()) < 1e-4


def test_integer_weights_are_repeated_rows():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, 3, generator=generator), torch.arange(20) % 3 == 0
    repeats = torch.arange(20) % 2 + 1
    weighted = fit_probe(x, y, weights_N=repeats.double())
    repeated = fit_probe(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats))
    assert torch.allclose(weighted.weight_D, repeated.weight_D, atol=1e-6)
    assert weighted.predict(x).tolist() == (x.double() @ weighted.weight_D + weighted.bias > 0).tolist()


def test_balanced_weights_and_f1_by_hand():
    assert balanced_weights(torch.tensor([True, False, False, False])).tolist() == pytest.approx(
        [2, 2 / 3, 2 / 3, 2 / 3]
    )
    predicted, y = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert f1_score(predicted, y) == 0.5
    assert f1_score(torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)) == 0


def test_columns_of_very_different_size_reach_it_too() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator).double()
    labels = x[:, 0] - 0.5 * x[:, 1] + torch.randn(300, generator=generator) > 0.3
    x = x * torch.tensor([1.0, 1e3, 1e-3, 1, 30, 0.1]).double() + torch.tensor([0.0, 5e3, 0, 100, 0, 0])
    probe = fit_probe(x, labels)
    assert probe.converged
    error = torch.sigmoid(probe.logits(x)) - labels.double()
    scale = (1 + (x - x.mean(0)).square().sum(0) / 4).rsqrt()
    assert abs(float(error.sum())) < 1e-3
    assert float(((probe.weight_D + x.T @ error) * scale).abs().max()) < 1e-2


def test_it_works_inside_no_grad_and_says_when_it_stopped_early() -> None:
    x, labels = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3 == 0
    with torch.no_grad():
        assert fit_probe(x, labels).converged
    early = fit_probe(x, labels, max_iterations=1)
    assert not early.converged
    assert unconverged({"done": fit_probe(x, labels), "early": early}) == [
        "probes of early did not converge; their accuracy may be too low"
    ]


def test_bad_input_is_refused():
    x, y = torch.randn(4, 2), torch.tensor([True, False, True, False])
    with pytest.raises(DataError, match="both classes"):
        fit_probe(x, torch.ones(4, dtype=torch.bool))
    with pytest.raises(DataError, match="both classes"):
        fit_probe(x[:0], y[:0])
    with pytest.raises(DataError, match="finite"):
        fit_probe(x.clone().fill_(float("nan")), y)
    with pytest.raises(ShapeError, match="bool labels"):
        fit_probe(x, torch.tensor([1, 0, 1, 0]))
    with pytest.raises(ShapeError, match="bool labels"):
        fit_probe(x, y[:3])
    with pytest.raises(ConfigError, match="C must be above 0"):
        fit_probe(x, y, C=0)
