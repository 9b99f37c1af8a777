"""Student's t against its table, its density, and where it ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monosema.metrics.student import t_coverage, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (1, 12.7062047),
        (2, 4.3026527),
        (3, 3.1824463),
        (4, 2.7764451),
        (9, 2.2621572),
        (30, 2.0422725),
        (255, 1.9693105),
    ],
)
def test_quantiles_are_those_of_the_table(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, rel=1e-7)
    assert t_coverage(t_quantile(degrees), degrees) == pytest.approx(0.95, rel=1e-12)


def test_the_limit_is_the_normal_distribution() -> None:
    assert t_quantile(100_000) == pytest.approx(1.959963984540054, rel=3e-5)


@pytest.mark.parametrize("degrees", [1, 2, 5, 6])
def test_coverage_is_the_integral_of_the_density(degrees: int) -> None:
    t = np.linspace(0, 1.5, 20_001)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    density = scale * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)
    integral = (density[1:] + density[:-1]).sum() / 2 * (t[1] - t[0])
    assert t_coverage(1.5, degrees) == pytest.approx(2 * integral, rel=1e-8)
    assert t_coverage(0.0, degrees) == 0
