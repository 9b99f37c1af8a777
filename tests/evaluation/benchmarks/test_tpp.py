"""Targeted perturbation where each class is an axis, and the latents are those axes or mixtures of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from benchmark_cases import axis_sae
from torch import Tensor

from monosema.coders import ReLU, Transcoder
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.evaluation.benchmarks import AblationConfig, Interval, encode_rows, targeted_perturbation
from monosema.evaluation.benchmarks.ablation import AblatedLogits, strongest_latents
from monosema.evaluation.benchmarks.probes import Probe

N = 20
LABELS = ["red"] * N + ["green"] * N + ["blue"] * N
ONE = AblationConfig(n_latents=(1, 3))


def alone(value: float) -> Interval:
    """What all resamples agree on."""
    return Interval(value, value, value)


def site() -> Tensor:
    """Axis c is 1 on the rows of class c; axis 3 is a constant."""
    x = torch.zeros(3 * N, 4, dtype=torch.float64)
    x[torch.arange(3 * N), torch.arange(3 * N) // N] = 1
    x[:, 3] = 1
    return x


def test_latents_of_one_class_each_reach_the_best_score():
    """Without its axis a class's row is like no class at all: its probe, and no other, calls it "not mine".

    Balanced accuracy of the class falls from 1 to 1/2; the others stay at 1.
    """
    report = targeted_perturbation(axis_sae(4), site(), LABELS, ONE)
    assert [each.label for each in report.classes] == ["blue", "green", "red"]
    assert [each.latents[0] for each in report.classes] == [2, 1, 0]
    assert report.mean_accuracy == 1
    first = report.scores[0]
    assert (first.score, first.intended, first.unintended) == (alone(0.5), alone(0.5), alone(0.0))
    # The latents of other classes are less active on its rows: however many may be ablated, they are not.
    assert [each.latents for each in report.classes] == [(2,), (1,), (0,)]
    assert replace(report.scores[1], n_latents=1) == first
    assert (report.n_train, report.n_test) == (48, 12)


def test_a_latent_of_all_classes_has_nothing_targeted():
    """One latent ``red + green + blue`` with an equal decoder is no class's: nothing has a positive effect."""
    encoder, decoder = torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    report = targeted_perturbation(axis_sae(4, 1, encoder=encoder, decoder=decoder), site(), LABELS, ONE)
    assert report.scores[0].score.value == pytest.approx(0, abs=1e-12)
    assert report.scores[0].intended.value == pytest.approx(0, abs=1e-12)


def test_a_latent_of_two_classes_hurts_both():
    """The latent "warm" fires on red and green along both axes: what it takes from red it takes from green."""
    encoder = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    decoder = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    coder = axis_sae(4, 2, encoder=encoder, decoder=decoder)
    report = targeted_perturbation(coder, site(), LABELS, AblationConfig(n_latents=(1,)))
    shared, separate = report.scores[0], targeted_perturbation(axis_sae(4), site(), LABELS, ONE).scores[0]
    assert shared.score.value < separate.score.value


def test_ablation_keeps_the_error_term():
    """Logits without a latent are those of ``x + decode(f') - decode(f)``, computed in full."""
    generator = torch.Generator().manual_seed(0)
    coder = axis_sae(
        5, 8, encoder=torch.randn(8, 5, generator=generator), decoder=torch.randn(8, 5, generator=generator)
    )
    x = torch.randn(9, 5, generator=generator).double()
    probes = [Probe(torch.randn(5, generator=generator).double(), 0.3) for _ in range(2)]
    rows, places = encode_rows(coder, x), torch.tensor([1, 4, 8])
    logits = AblatedLogits(rows, places, torch.tensor([6, 2, 3]), coder.W_dec.detach().double(), probes).without(2)
    f = coder.encode(x).detach()
    edited = f.clone()
    edited[:, [6, 2]] = 0
    changed = x + coder.decode(edited).detach() - coder.decode(f).detach()
    expected = torch.stack([probe.logits(changed[places]) for probe in probes], dim=1)
    assert torch.allclose(logits, expected, atol=1e-12)


def test_latents_are_ordered_by_effect_and_only_positive_ones_count():
    effect = torch.tensor([1.0, 2.0, -1.0, 0.0, 2.0])
    assert strongest_latents(effect, 10).tolist() == [1, 4, 0]
    assert strongest_latents(effect, 1).tolist() == [1]


def test_the_seed_decides_and_the_report_can_be_written():
    x = site() + 0.6 * torch.randn(3 * N, 4, generator=torch.Generator().manual_seed(2)).double()
    first, again, other = (
        targeted_perturbation(axis_sae(4), x, LABELS, AblationConfig(n_latents=(1,), seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.scores != other.scores
    score = first.scores[0].score
    assert score.low < score.value < score.high
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert plain["scores"][0]["score"]["low"] == score.low
    assert str(score) in str(first)
    assert "targeted probe perturbation of 4 latents at site" in str(first)


def test_bad_input_is_refused():
    x, coder = site(), axis_sae(4)
    with pytest.raises(DataError, match="at least two"):
        targeted_perturbation(coder, x, ["red"] * len(x))
    with pytest.raises(DataError, match="1 row of a class cannot be split"):
        targeted_perturbation(coder, x, ["pink", *LABELS[1:]])
    with pytest.raises(ShapeError, match="one label for each row"):
        targeted_perturbation(coder, x, LABELS[1:])
    with pytest.raises(ShapeError, match="d_in"):
        targeted_perturbation(coder, x[:, :3], LABELS)
    with pytest.raises(ShapeError, match="the rows have 4 latents, the coder 5"):
        targeted_perturbation(axis_sae(4, 5), encode_rows(coder, x), LABELS)
    with pytest.raises(DataError, match="finite"):
        targeted_perturbation(coder, x / 0, LABELS)
    with pytest.raises(DataError, match="no activations"):
        targeted_perturbation(coder, x[:0], [])
    with pytest.raises(ConfigError, match="needs an SAE"):
        targeted_perturbation(Transcoder(4, 4, 8, activation=ReLU()), x, LABELS)
    for wrong in ((), (0,), (5, 2), (2, 2)):
        with pytest.raises(ConfigError, match="n_latents"):
            AblationConfig(n_latents=wrong)
