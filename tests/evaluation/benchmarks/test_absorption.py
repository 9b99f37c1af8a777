"""Absorption planted by hand.

The site has three axes: "animal" (0), "cat" (1) and noise (2). Latent 0 reads ``animal - cat``: it is the animal
latent, and silent on cats, where latent 1 fires with a decoder row that points to animal and cat alike.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from benchmark_cases import axis_sae
from torch import Tensor

from monosema.coders import SAE, ReLU, Transcoder
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.evaluation.benchmarks import AbsorptionConfig, encode_rows, first_letters, measure_absorption

N = 40
LABELS = ["cat"] * N + ["dog"] * (2 * N) + ["stone"] * (3 * N)
HIERARCHY = {"animal": ["cat", "dog"]}


def site(jitter: float = 0.01) -> Tensor:
    x = torch.zeros(6 * N, 3, dtype=torch.float64)
    x[: 3 * N, 0] = 1
    x[:N, 1] = 1
    x[:, 2] = torch.arange(6 * N) % 2
    return x + jitter * torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def absorbing_sae():
    encoder = torch.tensor([[1.0, -1.2, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    decoder = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    coder = axis_sae(3, encoder=encoder, decoder=decoder)
    coder.b_enc.data.fill_(-0.1)  # noise of the axes does not fire
    return coder


def test_a_planted_absorption_is_found():
    # One main latent: as f1_gain asks for more than latent 1 brings.
    report = measure_absorption(absorbing_sae(), site(), LABELS, HIERARCHY, AbsorptionConfig(f1_gain=0.9))
    (animal,) = report.parents
    assert animal.main_latents == (0,)
    assert animal.probe_f1 == 1
    assert animal.n_rows == 24  # a fifth of the 120 animals
    assert animal.children == {"cat": 1.0, "dog": 0.0}
    assert set(animal.absorbing_latents) == {1}
    assert sum(animal.absorbing_latents.values()) == pytest.approx(animal.full.value * 24)
    assert animal.full.value == animal.fraction.value == animal.silent_fraction
    assert animal.full == report.mean_full
    assert 0 < animal.full.value < 0.8
    assert animal.full.low < animal.full.value < animal.full.high


def test_a_dictionary_without_absorption_scores_zero():
    report = measure_absorption(axis_sae(3), site(), LABELS, HIERARCHY)
    assert report.mean_full.value == 0
    assert report.mean_fraction.value == 0
    assert report.parents[0].main_latents == (0,)
    assert report.parents[0].main_f1 == 1
    assert report.parents[0].children == {"cat": 0.0, "dog": 0.0}


def test_split_latents_are_the_parents_own():
    """Two latents, one for each child: both are main, so that neither absorbs the other."""
    encoder = torch.tensor([[0.0, 1.0, 0.0], [1.0, -1.2, 0.0], [0.0, 0.0, 1.0]])
    coder = axis_sae(3, encoder=encoder, decoder=torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    coder.b_enc.data.fill_(-0.1)
    report = measure_absorption(coder, site(), LABELS, HIERARCHY)
    assert set(report.parents[0].main_latents) == {0, 1}
    assert report.mean_n_main_latents == 2
    assert report.mean_full.value == 0


def test_the_fraction_is_the_absorbers_share_of_both():
    """On cats the main latent still fires with 0.25 along the probe, and the absorber with 0.75: fraction 0.75."""
    x = site(jitter=0.0)
    encoder = torch.tensor([[1.0, -0.75, 0.0], [0.0, 0.75, 0.0], [0.0, 0.0, 1.0]])
    decoder = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    report = measure_absorption(
        axis_sae(3, encoder=encoder, decoder=decoder), x, LABELS, HIERARCHY, AbsorptionConfig(f1_gain=0.9)
    )
    (animal,) = report.parents
    assert animal.main_latents == (0,)
    assert animal.full.value == 0
    n_cats = round(animal.fraction.value / 0.75 * 24)
    assert animal.fraction.value == pytest.approx(0.75 * n_cats / 24)
    assert 1 <= n_cats <= 19


@pytest.mark.parametrize(
    ("change", "full", "fraction"),
    [
        ({"least_share": 1.0}, False, False),
        ({"least_cosine": 0.99}, False, True),
        ({"least_cosine_partial": 0.99}, True, False),
    ],
)
def test_each_threshold_decides(change: dict[str, float], full: bool, fraction: bool):
    """With a share of half of the probe's projection by each of two latents, neither is all of it."""
    encoder = torch.tensor([[1.0, -1.2, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    decoder = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.6, 0.0], [0.0, 0.0, 1.0]])
    coder = axis_sae(3, encoder=encoder, decoder=decoder)
    coder.b_enc.data.fill_(-0.1)
    options = AbsorptionConfig(f1_gain=0.9, **change)
    report = measure_absorption(coder, site(), LABELS, HIERARCHY, options)
    assert (report.mean_full.value > 0, report.mean_fraction.value > 0) == (full, fraction)
    plain = measure_absorption(coder, site(), LABELS, HIERARCHY, AbsorptionConfig(f1_gain=0.9))
    assert plain.mean_full.value > 0
    assert plain.mean_fraction.value > 0


def test_the_seed_decides_and_the_report_can_be_written():
    arguments = absorbing_sae(), site(), LABELS, HIERARCHY
    first, again = (measure_absorption(*arguments, AbsorptionConfig(seed=3, f1_gain=0.9)) for _ in range(2))
    assert first == again
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert plain["config"]["seed"] == 3
    assert plain["parents"][0]["absorbing_latents"]["1"] > 0
    text = str(first)
    assert text.splitlines()[0] == "feature absorption of 3 latents at site"
    assert any(line.split()[:1] == ["animal"] for line in text.splitlines())
    assert str(first.mean_full) in text


def test_a_label_that_the_site_does_not_hold_is_left_out():
    hierarchy = HIERARCHY | {"odd": ["a"]}
    labels = ["a" if (i * 7) % 10 < 2 and i >= 3 * N else label for i, label in enumerate(LABELS)]
    x = site(jitter=0.0)
    report = measure_absorption(axis_sae(3), x, labels, hierarchy)
    assert "odd: left out, the probe's F1 is" in str(report)
    with pytest.raises(DataError, match="no parent can be scored"):
        measure_absorption(axis_sae(3), x, labels, {"odd": ["a"]})


def test_a_parent_with_too_few_rows_is_left_out():
    labels = ["kiwi", *LABELS[1:]]
    report = measure_absorption(axis_sae(3), site(), labels, HIERARCHY | {"bird": ["kiwi"]})
    assert [each.parent for each in report.parents] == ["animal"]
    assert "bird: left out, too few to fit on some and test on others: 1 row" in report.notes[0]


def test_copies_of_a_word_are_on_one_side():
    """Each row is there twice: were copies parted, a probe of many dimensions would know the test rows."""
    x = torch.randn(60, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x])
    labels = ["a" if number % 2 else "b" for number in range(60)] * 2
    coder = axis_sae(100)
    rows = encode_rows(coder, x)
    apart = measure_absorption(coder, rows, labels, {"parent": ["a"]}, AbsorptionConfig(least_probe_f1=0))
    together = replace(rows, groups_N=torch.arange(60).repeat(2))
    config = AbsorptionConfig(least_probe_f1=0)
    honest = measure_absorption(coder, together, labels, {"parent": ["a"]}, config)
    assert apart.parents[0].probe_f1 > 0.8
    assert honest.parents[0].probe_f1 < 0.75


def test_first_letters():
    assert first_letters([" Apple", "bee", "ant", "bee", "9th"]) == {"a": [" Apple", "ant"], "b": ["bee"]}


def test_bad_input_is_refused():
    x, coder = site(), axis_sae(3)
    with pytest.raises(ShapeError, match="one label for each row"):
        measure_absorption(coder, x, LABELS[:-1], HIERARCHY)
    with pytest.raises(ShapeError, match="d_in"):
        measure_absorption(coder, x[:, :2], LABELS, HIERARCHY)
    with pytest.raises(DataError, match="finite"):
        measure_absorption(coder, x.masked_fill(x == x.max(), float("nan")), LABELS, HIERARCHY)
    with pytest.raises(DataError, match="no activations"):
        measure_absorption(coder, x[:0], [], HIERARCHY)
    with pytest.raises(DataError, match="0 of 240 rows belong to the parent 'plant'"):
        measure_absorption(coder, x, LABELS, {"plant": ["rose"]})
    with pytest.raises(DataError, match="some of others"):
        measure_absorption(coder, x, ["cat"] * len(x), HIERARCHY)
    with pytest.raises(ConfigError, match="hierarchy must map"):
        measure_absorption(coder, x, LABELS, {})
    with pytest.raises(ConfigError, match="hierarchy must map"):
        measure_absorption(coder, x, LABELS, {"animal": "cat"})
    with pytest.raises(ConfigError, match="needs an SAE"):
        measure_absorption(Transcoder(3, 4, 8, activation=ReLU()), x, LABELS, HIERARCHY)
    with pytest.raises(ConfigError, match="token_scaling"):
        measure_absorption(SAE(3, 8, activation=ReLU(), token_scaling="constant_norm"), x, LABELS, HIERARCHY)
    with pytest.raises(ConfigError, match="most_absorbing"):
        AbsorptionConfig(most_absorbing=0)
