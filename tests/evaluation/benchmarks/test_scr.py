"""A probe that took the confound for its task, on axes: 0 is the target, 1 the spurious label, twice as large."""

from __future__ import annotations

import json

import pytest
import torch
from benchmark_cases import axis_sae
from torch import Tensor

from monosema.core.errors import DataError, ShapeError
from monosema.evaluation.benchmarks import AblationConfig, Interval, spurious_removal

N = 20
TARGET = torch.arange(4 * N) // N >= 2
SPURIOUS = torch.arange(4 * N) // N % 2 == 1
CONFIG = AblationConfig(n_latents=(1, 2))


def site(noise: float = 0.0) -> Tensor:
    """x_0 is 1 or 0 with the target, x_1 is 2 or 0 with the confound, and x_2 is 0."""
    x = torch.zeros(4 * N, 3, dtype=torch.float64)
    x[:, 0], x[:, 1] = TARGET.double(), 2 * SPURIOUS.double()
    return x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()


def test_the_biased_probe_follows_the_confound_and_ablation_of_it_helps():
    """The biased probe weighs x_1 over x_0 so that it tells the spurious label exactly: by hand, logits of the cells
    (target, spurious) = (1, 0) and (0, 1) are below and above zero. On the target it is right in two cells of four.
    """
    report = spurious_removal(axis_sae(3), site(), TARGET, SPURIOUS, CONFIG)
    assert (report.biased_target, report.biased_spurious) == (0.5, 1.0)
    assert (report.oracle_target, report.oracle_spurious) == (1.0, 1.0)
    first = report.scores[0]
    # Without axis 1 no row reaches the biased probe's threshold: it says "no" always, and is right in two cells again.
    assert first.target.value == first.score.value == 0.0
    assert first.spurious.value == 0.0  # no gap: the biased probe tells the spurious label perfectly
    assert (report.n_train, report.n_test) == (64, 16)


def test_all_is_won_back_where_the_bias_does_not_rest_on_the_confound():
    """x = (t, s, 1 - s). By symmetry the biased probe is ``w (x_0 + x_1 - x_2 - 1/2)``: where the labels differ its
    logits are -w/2 for the target alone and w/2 for the confound alone, both wrong. Without axes 1 and 2 they are w/2
    with the target and -w/2 without: all right.
    """
    x = site()
    x[:, 1], x[:, 2] = SPURIOUS.double(), (~SPURIOUS).double()
    report = spurious_removal(axis_sae(3), x, TARGET, SPURIOUS, CONFIG)
    assert (report.biased_target, report.biased_spurious) == (0.5, 1.0)
    assert report.scores[1].target == report.scores[1].score == Interval(1.0, 1.0, 1.0)


def test_the_size_of_an_effect_counts_and_not_its_sign():
    """Latent 1 writes the confound backwards: of a negative effect, and without it the confound is twice as large."""
    x = site(0.4)
    x[:, 1] -= SPURIOUS.double()
    decoder = torch.eye(3)
    decoder[1] = -decoder[1]
    report = spurious_removal(axis_sae(3, decoder=decoder), x, TARGET, SPURIOUS, AblationConfig(n_latents=(1,)))
    assert report.oracle_target > report.biased_target > 0.5
    assert report.scores[0].target.value < 0


def test_the_seed_decides_and_the_report_can_be_written():
    first, again = (spurious_removal(axis_sae(3), site(0.4), TARGET, SPURIOUS, CONFIG) for _ in range(2))
    assert first == again
    target = first.scores[1].target
    assert target.low <= target.value <= target.high
    assert json.loads(json.dumps(first.to_dict(), allow_nan=False))["scores"][1]["target"]["value"] == target.value
    assert "spurious correlation removal with 3 latents at site" in str(first)
    assert f"{first.biased_target:.4f}" in str(first)


def test_bad_input_is_refused():
    coder, x = axis_sae(3), site()
    with pytest.raises(DataError, match="0 of the target alone"):
        spurious_removal(coder, x, TARGET & SPURIOUS, SPURIOUS)
    with pytest.raises(ShapeError, match="target must be a bool"):
        spurious_removal(coder, x, TARGET.long(), SPURIOUS)
    with pytest.raises(ShapeError, match="spurious must be a bool"):
        spurious_removal(coder, x, TARGET, SPURIOUS[1:])
    with pytest.raises(ShapeError, match="d_in"):
        spurious_removal(coder, x[:, :2], TARGET, SPURIOUS)
    with pytest.raises(DataError, match="finite"):
        spurious_removal(coder, x / 0, TARGET, SPURIOUS)
    with pytest.raises(DataError, match="no activations"):
        spurious_removal(coder, x[:0], TARGET[:0], SPURIOUS[:0])
