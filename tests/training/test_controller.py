"""The target-L0 controller by hand and in a closed loop."""

from __future__ import annotations

import math

import pytest

from monosema.training.controller import TargetL0Controller


def test_one_update_by_hand():
    controller = TargetL0Controller(2.0, 10.0, n_steps=1000)
    controller.update_(20.0)  # gain 12/1000, error log 2
    assert controller.coefficient == pytest.approx(2 * math.exp(0.012 * math.log(2)))
    before = controller.coefficient
    controller.update_(0.0)  # the running mean is 0.95 · 20
    assert controller.coefficient == pytest.approx(before * math.exp(0.012 * math.log(1.9)))


def test_steps_are_bounded():
    fast = TargetL0Controller(1.0, 10.0, n_steps=10)
    fast.update_(1e9)
    assert fast.coefficient == pytest.approx(math.exp(0.05))
    low = TargetL0Controller(1.0, 10.0, n_steps=10)
    low.update_(0.0)
    assert low.coefficient == pytest.approx(math.exp(-0.05))


def test_it_finds_the_coefficient_of_a_known_response():
    """L0 = 100 / λ: the coefficient for 32 is 100 / 32."""
    for start in (0.01, 1000.0):
        controller = TargetL0Controller(start, 32.0, n_steps=2000)
        for _ in range(2000):
            controller.update_(100 / controller.coefficient)
        assert controller.coefficient == pytest.approx(100 / 32, rel=0.02)


def test_state_continues_bit_for_bit():
    one = TargetL0Controller(1.0, 5.0, 100)
    one.update_(7.0)
    other = TargetL0Controller(9.0, 5.0, 100)
    other.load_state_dict(one.state_dict())
    for controller in (one, other):
        controller.update_(6.0)
    assert one.state_dict() == other.state_dict()
