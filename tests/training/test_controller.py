"""The target-L0 controller by hand and in a closed loop."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.training.controller import SparsityControl, TargetL0Controller
from monosema.training.objectives import Loss
from monosema.training.terms import L1, Lp


def test_updates_by_hand():
    controller = TargetL0Controller(2.0, 10.0)
    controller.update_(20.0)  # the first L0 is the mean; nothing has changed yet
    assert controller.coefficient == pytest.approx(2 * math.exp(0.1 * math.log(2)))
    before = controller.coefficient
    controller.update_(19.0)  # the mean falls to 19.8
    step = 0.1 * (math.log(1.98) + 20 * math.log(19.8 / 20))
    assert controller.coefficient == pytest.approx(before * math.exp(step))


def test_steps_are_bounded():
    fast = TargetL0Controller(1.0, 10.0)
    fast.update_(1e9)
    assert fast.coefficient == pytest.approx(math.exp(0.1))  # the error counts as one
    fast.update_(1e-9)
    assert fast.coefficient == pytest.approx(math.exp(0.1 - 0.2))
    low = TargetL0Controller(1.0, 10.0)
    low.update_(0.0)
    assert low.coefficient == pytest.approx(math.exp(-0.1))


def test_it_falls_to_the_bound_as_fast_as_it_may_and_does_not_rise_above_it():
    controller = TargetL0Controller(1.0, 10.0)
    for _ in range(3):
        controller.update_(100.0, most=math.exp(-0.3))
    assert controller.coefficient == pytest.approx(math.exp(-0.3))
    controller.update_(100.0, most=0.0)
    assert controller.coefficient == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize("lag", [1, 30])
def test_it_finds_the_coefficient_of_a_known_response(lag: int):
    """L0 comes nearer to 100 / λ by 1 / lag each step: the coefficient for 32 is 100 / 32."""
    for start in (0.01, 1000.0):
        controller, l0 = TargetL0Controller(start, 32.0), 200.0
        for _ in range(600):
            l0 += (100 / controller.coefficient - l0) / lag
            controller.update_(l0)
        assert controller.coefficient == pytest.approx(100 / 32, rel=0.02)


def test_state_continues_bit_for_bit():
    one = TargetL0Controller(1.0, 5.0)
    one.update_(7.0)
    other = TargetL0Controller(9.0, 5.0)
    other.load_state_dict(one.state_dict())
    for controller in (one, other):
        controller.update_(6.0)
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    ("sparsity", "degree"),
    [(L1(target_l0=2), 1), (Lp(target_l0=2, p=0.5), 0.5), (Lp(target_l0=2, p=0.5, root=True), 1)],
)
def test_the_bound_follows_the_degree_of_the_penalty(sparsity: L1 | Lp, degree: float):
    # R 3 of a miss of norm 2, decoded to norm 5, penalty 100: 1.2 · 3 · 5 / (degree · 2 · 100) = 0.09 / degree
    energies = torch.tensor([25.0, 4.0])
    empty = torch.zeros(1, 1)
    loss = Loss({"mse": torch.tensor(3.0)}, torch.tensor(100.0), empty, empty, empty, energies)
    control = SparsityControl(sparsity, 1, 1000)
    for step in range(100):
        control.update_(step, loss, torch.tensor(40), 2, None)
    assert control.controller is not None
    assert control.controller.coefficient == pytest.approx(0.09 / degree)
