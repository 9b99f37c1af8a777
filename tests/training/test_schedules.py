"""Schedules by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from monosema.training.schedules import automatic_beta2, automatic_lr, lr_factor, rewarm_factor, warmup_factor


def test_learning_rate_rises_stays_and_falls():
    factors = [lr_factor(step, 10, warmup_fraction=0.2, decay_fraction=0.4) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_learning_rate_without_warmup_or_decay_is_constant():
    assert [lr_factor(step, 5, warmup_fraction=0.0, decay_fraction=0.0) for step in range(5)] == [1.0] * 5
    assert [lr_factor(step, 4, warmup_fraction=0.0, decay_fraction=1.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert lr_factor(0, 1, warmup_fraction=0.03, decay_fraction=0.3) == 1.0, "a run of one step takes it whole"


def test_the_main_part_between_warmup_and_decay():
    def run(kind, cycles=1):
        options = {"warmup_fraction": 0.2, "decay_fraction": 0.2, "end_fraction": 0.2, "cycles": cycles}
        return [lr_factor(step, 10, kind=kind, **options) for step in range(10)]

    # six steps fall from 1 to 0.2; the warm-up's two are 1/2 and 1, the decay's two keep 0.2 and halve it
    assert run("linear") == pytest.approx([0.5, 1, 1, 13 / 15, 11 / 15, 0.6, 7 / 15, 1 / 3, 0.2, 0.1])
    half = [0.2 + 0.4 * (1 + math.cos(math.pi * j / 6)) for j in range(6)]
    assert run("cosine") == pytest.approx([0.5, 1, *half, 0.2, 0.1])
    third = [0.2 + 0.4 * (1 + math.cos(math.pi * j / 3)) for j in range(3)]
    assert run("cosine_restarts", 2) == pytest.approx([0.5, 1, *third, *third, 0.2, 0.1])


def test_learning_rate_rises_again_after_a_resampling():
    assert [rewarm_factor(steps, 4, 0.2) for steps in (0, 1, 2, 4, 9)] == pytest.approx([0.2, 0.4, 0.6, 1, 1])
    assert rewarm_factor(0, 0, 0.0) == 1.0


def test_sparsity_rises_from_zero():
    assert [warmup_factor(step, 10, 0.4) for step in range(6)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    assert warmup_factor(0, 10, 0.0) == 1.0


def test_automatic_second_moment_remembers_a_twentieth_of_the_run():
    assert automatic_beta2(2000) == pytest.approx(1 - 1 / 100)
    assert automatic_beta2(10) == pytest.approx(1 - 1 / 20)
    assert automatic_beta2(10**6) == pytest.approx(0.999)


def test_automatic_learning_rate_by_hand():
    assert automatic_lr(2**14, 2048, 100_000) == pytest.approx(2e-4)
    assert automatic_lr(2**16, 2048, 100_000) == pytest.approx(1e-4)
    assert automatic_lr(2**14, 512, 100_000) == pytest.approx(1e-4)
    assert automatic_lr(2**14, 2048, 4000) == pytest.approx(1e-3)
    assert automatic_lr(2**14, 4096, 10**7) == pytest.approx(2e-4), "never lowered for long runs or large batches"


def test_automatic_learning_rate_is_monotone_and_bounded():
    widths, sizes, lengths = [64, 2**12, 2**14, 2**20], [1, 128, 2048, 10**5], [1, 100, 10**4, 10**5, 10**8]
    for width, size, length in itertools.product(widths, sizes, lengths):
        lr = automatic_lr(width, size, length)
        assert 0 < lr <= 8e-3
        assert automatic_lr(2 * width, size, length) <= lr
        assert automatic_lr(width, 2 * size, length) >= lr
        assert automatic_lr(width, size, 2 * length) <= lr
