"""Where values lie, and round ticks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monosema.evaluation.page.axes import Axis, axis_of


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "ticks"),
    [
        (0.68, 0.93, False, ["0.70", "0.75", "0.80", "0.85", "0.90"]),
        (-1.2, 0.9, False, ["-1.0", "-0.5", "0.0", "0.5"]),
        (0, 61.4, False, ["0", "20", "40", "60"]),
        (0, 30_000, False, ["0", "10,000", "20,000", "30,000"]),
        (0.9, 1200, True, ["1", "10", "100", "1,000"]),
        (7, 73, True, ["10", "20", "50"]),
        (20, 90, True, ["20", "30", "40", "50", "60", "70", "80", "90"]),
        (30, 34, True, ["30", "31", "32", "33", "34"]),
        (0.004, 0.2, True, ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]),
    ],
)
def test_ticks_are_round(low: float, high: float, logarithmic: bool, ticks: list[str]):
    axis = Axis(low=low, high=high, start=0, stop=100, logarithmic=logarithmic)
    assert [text for _, text in axis.ticks()] == ticks
    assert [value for value, _ in axis.ticks()] == pytest.approx([float(text.replace(",", "")) for text in ticks])


def test_values_lie_between_the_ends():
    linear = Axis(low=10, high=20, start=100, stop=0)
    assert [linear.place(value) for value in (10, 15, 20)] == [100, 50, 0]
    assert (linear.place(-5), linear.place(40)) == (100, 0)
    logarithmic = Axis(low=1, high=100, start=0, stop=10, logarithmic=True)
    assert [logarithmic.place(value) for value in (1, 10, 100)] == pytest.approx([0, 5, 10])
    assert logarithmic.place(0) == logarithmic.place(-3) == 0


def test_an_axis_has_room_for_its_values():
    axis = axis_of([0.5, math.nan, 0.9, math.inf], start=0, stop=1)
    assert (axis.low, axis.high) == pytest.approx((0.476, 0.924))
    alone = axis_of([0.9, 0.9], start=0, stop=1)
    assert (alone.low, alone.high, alone.place(0.9)) == pytest.approx((0.81, 0.99, 0.5))
    assert axis_of([0.0], start=0, stop=1).place(0.0) == 0.5
    nothing = axis_of([math.nan], start=0, stop=1)
    assert nothing.low < 0 < 1 < nothing.high
    assert axis_of([0.3, 0.3 + 1e-16], start=0, stop=1).high > 0.32  # no ticks sixteen digits apart


@pytest.mark.parametrize(
    ("values", "logarithmic"), [([8, 32], True), ([8, 31], False), ([0, 8, 64], False), ([8], False)]
)
def test_an_axis_is_logarithmic_where_that_helps(values: list[float], logarithmic: bool):
    assert axis_of(values, start=0, stop=1, may_be_logarithmic=True).logarithmic is logarithmic
    assert not axis_of(values, start=0, stop=1).logarithmic


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans())
def test_any_values_have_ticks_that_differ(values: list[float], may_be_logarithmic: bool):
    axis = axis_of(values, start=0, stop=1, may_be_logarithmic=may_be_logarithmic)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 13
    assert len({text for _, text in ticks}) == len(ticks)
    assert all(first < second for (first, _), (second, _) in pairwise(ticks))
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= ticks[0][0] and ticks[-1][0] <= axis.high + slack
