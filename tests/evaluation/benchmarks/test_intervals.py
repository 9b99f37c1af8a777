"""Bootstrap intervals where they are known."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.evaluation.benchmarks import Interval
from monosema.evaluation.benchmarks.intervals import bootstrap_mean, few_units, n_units, resampled_means


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bootstrap_mean(values, seed=0)
    half = 1.96 * float(values.std()) / math.sqrt(2000)
    assert found.value == pytest.approx(float(values.mean()), abs=1e-12)
    assert found.value - found.low == pytest.approx(half, rel=0.15)
    assert found.high - found.value == pytest.approx(half, rel=0.15)


def test_equal_groups_are_as_uncertain_as_one_value_each() -> None:
    few = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    many = few.repeat_interleave(100)
    groups = torch.arange(8).repeat_interleave(100) * 3 + 5
    assert bootstrap_mean(many, 0, groups=groups) == bootstrap_mean(few, 0)
    alone = bootstrap_mean(many, 0)
    assert alone.high - alone.low < 0.25 * (bootstrap_mean(few, 0).high - bootstrap_mean(few, 0).low)


def test_the_mean_is_over_values_and_not_over_groups() -> None:
    assert bootstrap_mean(torch.tensor([1.0, 1.0, 1.0, 0.0]), 0, groups=torch.tensor([0, 0, 0, 1])).value == 0.75


def test_groups_of_unequal_size_weigh_what_they_hold() -> None:
    groups = torch.tensor([0] * 9 + [1, 2, 2])
    assert bootstrap_mean(torch.full((12,), 0.5), 0, groups=groups) == Interval(0.5, 0.5, 0.5)


def test_a_seed_gives_one_interval_and_values_that_agree_none() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    assert bootstrap_mean(values, 3) == bootstrap_mean(values, 3) != bootstrap_mean(values, 4)
    assert bootstrap_mean(torch.full((4,), 0.5), 0) == Interval(0.5, 0.5, 0.5)


def test_what_is_undefined_does_not_count() -> None:
    assert bootstrap_mean(torch.tensor([0.25, math.nan, 0.25]), 0).value == 0.25
    empty = bootstrap_mean(torch.tensor([math.nan]), 0)
    assert math.isnan(empty.value)
    assert str(empty) == "undefined"
    assert str(Interval(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"


def test_columns_are_resampled_together_and_the_first_row_is_what_was_measured() -> None:
    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    both = torch.stack([values[:, 0], values[:, 1], values.sum(1)], dim=1)
    means = resampled_means(both, 0, "here")
    assert means.shape == (1001, 3)
    torch.testing.assert_close(means[0], both.double().mean(0))
    torch.testing.assert_close(means[:, 0] + means[:, 1], means[:, 2])
    torch.testing.assert_close(resampled_means(both[:, 0], 0, "here"), means[:, 0])
    assert not torch.equal(resampled_means(both, 0, "there"), means)
    assert resampled_means(both[:0], 0).isnan().all()


def test_scores_that_are_undefined_in_some_resamples() -> None:
    assert Interval.of(torch.tensor([0.5, 0.25, math.nan, 0.25]), 20) == Interval(0.5, 0.25, 0.25)
    assert math.isnan(Interval.of(torch.tensor([0.5, math.nan]), 20).low)


@pytest.mark.parametrize(("n", "least"), [(5, 0.85), (10, 0.92), (30, 0.92)])
def test_few_values_are_covered_as_said(n: int, least: float) -> None:
    values = torch.randn(400, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    found = [bootstrap_mean(each, number) for number, each in enumerate(values)]
    held = sum(each.low <= 0 <= each.high for each in found) / 400
    assert least <= held <= 0.98


def test_percentiles_are_expanded_by_students_t() -> None:
    """Of 10 units the tail is Phi(-2.2622 sqrt(10 / 9)) = Phi(-2.3845) = 0.00855 on each side."""
    resamples = torch.linspace(0, 1, 1001, dtype=torch.float64)
    found = Interval.of(torch.cat([torch.tensor([0.5], dtype=torch.float64), resamples]), 10)
    assert (found.low, found.high) == (pytest.approx(0.00855, abs=5e-5), pytest.approx(1 - 0.00855, abs=5e-5))


def test_one_unit_has_no_interval() -> None:
    one = bootstrap_mean(torch.tensor([0.25]), 0)
    assert one.value == 0.25 and math.isnan(one.low) and math.isnan(one.high)
    assert str(one) == "0.2500 [no interval]"
    grouped = bootstrap_mean(torch.tensor([0.0, 1.0]), 0, groups=torch.tensor([4, 4]))
    assert grouped.value == 0.5 and math.isnan(grouped.low)


def test_units_of_means_of_means_add_their_degrees_of_freedom() -> None:
    assert n_units([torch.tensor([1, 1, 2]), torch.tensor([5]), torch.tensor([7, 8, 9])]) == 1 + 1 + 0 + 2
    assert few_units(10, "texts") == []
    assert few_units(1, "texts") == ["there are no intervals over texts, of which there is one"]
    assert few_units(9, "texts") == ["the intervals rest on 9 texts; below 10 they are too narrow"]
