"""Firing statistics by hand, over windows."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.training import statistics
from monosema.training.statistics import FiringStatistics

OK, SKIPPED = torch.tensor(True), torch.tensor(False)


def counts(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_tokens_since_a_latent_fired():
    firing = FiringStatistics(3)
    firing.update_(counts(2, 0, 0), 10, OK)
    firing.update_(counts(0, 1, 0), 5, OK)
    assert firing.tokens_since_fired.tolist() == [5, 0, 15]
    assert firing.fired.tolist() == [True, True, False]


def test_density_is_over_the_newest_one_to_two_windows(monkeypatch):
    monkeypatch.setattr(statistics, "WINDOW_TOKENS", 20)
    firing = FiringStatistics(2)
    expected = [  # after each batch of 10 tokens in which latent 0 fires once more than in the last
        (1, 10),
        (1 + 2, 20),
        (1 + 2 + 3, 30),  # the first window is full and kept beside the second
        (1 + 2 + 3 + 4, 40),
        (3 + 4 + 5, 30),  # the first window is forgotten
        (3 + 4 + 5 + 6, 40),
        (5 + 6 + 7, 30),
    ]
    for number, (fired, tokens) in enumerate(expected, start=1):
        firing.update_(counts(number, 0), 10, OK)
        assert firing.density().tolist() == pytest.approx([fired / tokens, 0.0])
    log = firing.log10_density()
    assert log.dtype == torch.float32
    assert log.tolist() == pytest.approx([math.log10(18 / 30 + 1e-10), -10.0], rel=1e-6)


def test_before_the_first_batch_nothing_has_fired():
    assert FiringStatistics(2).density().tolist() == [0.0, 0.0]


def test_a_skipped_step_changes_nothing_even_at_the_end_of_a_window(monkeypatch):
    monkeypatch.setattr(statistics, "WINDOW_TOKENS", 10)
    firing = FiringStatistics(2)
    firing.update_(counts(3, 0), 10, OK)
    before = {name: value.clone() for name, value in firing.state_dict().items()}
    firing.update_(counts(1, 9), 10, SKIPPED)
    assert all(torch.equal(value, before[name]) for name, value in firing.state_dict().items())


def test_figures_by_hand(monkeypatch):
    monkeypatch.setattr(statistics, "WINDOW_TOKENS", 10**9)
    firing = FiringStatistics(5)
    firing.update_(counts(0, 3, 0, 0, 0), 1_000_000, OK)  # density 3e-6 at the end, under 1e-5 only
    firing.update_(counts(4, 0, 0, 100_000, 0), 0, OK)
    firing.update_(counts(6, 0, 0, 0, 0), 0, OK)  # 1e-5 exactly, which is not under 1e-5
    assert firing.tokens_since_fired.tolist() == [0, 0, 1_000_000, 0, 1_000_000]
    firing.tokens_since_fired[1] = 500
    figures = firing.figures(dead_after=500)
    assert (figures["n_dead"], figures["dead_fraction"]) == (3, 0.6)
    assert figures["never_fired_fraction"] == 0.4
    assert figures["mean_tokens_since_fired"] == 2_000_500 / 5
    assert (figures["below_1e-5_fraction"], figures["below_1e-6_fraction"]) == (0.6, 0.4)
    densities = [1e-5, 3e-6, 0.0, 0.1, 0.0]
    logs = [math.log10(density + 1e-10) for density in densities]
    assert figures["mean_log10_density"] == pytest.approx(sum(logs) / 5, rel=1e-6)
    expected = [0] * 20  # bins of 0.5 from -10: -10 twice, -5.52, just above -5, just above -1
    for place, number in ((0, 2), (8, 1), (10, 1), (18, 1)):
        expected[place] += number
    assert figures["log10_density_histogram"] == expected
