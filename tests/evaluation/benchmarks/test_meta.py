"""Meta-dictionaries written by hand on decoders of known structure."""

from __future__ import annotations

import json
import math

import pytest
import torch
from benchmark_cases import axis_sae

from monosema.coders import CLT, ReLU
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.evaluation.benchmarks.meta import MetaReport, decoder_directions, measure_meta

DECODER = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0], [3.0, 4.0]])
"""Axis 0, axis 1, nothing, and a direction (0.6, 0.8) made of both."""


def dictionary():
    return axis_sae(2, 4, encoder=torch.zeros(4, 2), decoder=DECODER)


def test_directions_have_norm_one_and_zero_rows_are_left_out():
    rows, kept = decoder_directions(dictionary())
    assert kept.tolist() == [0, 1, 3]
    assert torch.allclose(rows, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]).double())


def test_a_meta_dictionary_of_the_axes_explains_all():
    report = measure_meta(dictionary(), {7: axis_sae(2)})
    assert report.fve == pytest.approx(1)
    assert math.isnan(report.fve_std)
    assert report.n_zero == 1
    (meta,) = report.dictionaries
    assert (meta.seed, meta.n_meta_latents, meta.dead_fraction) == (7, 2, 0)
    assert meta.l0 == pytest.approx(4 / 3)
    made_of = report.decomposition(3)
    assert made_of.meta_latents == (1, 0)
    assert made_of.values == pytest.approx((0.8, 0.6))
    assert made_of.error == pytest.approx(0)


def test_half_of_the_axes_explains_what_is_worked_out_by_hand():
    """With axis 0 alone the errors are 0, 1 and 0.64; about the mean (1.6/3, 1.8/3) the rows vary by
    3 - 3 (0.2844... + 0.36) = 1.0666...; fve = 1 - 1.64/1.0666...
    """
    one = axis_sae(2, 2, encoder=torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    report = measure_meta(dictionary(), {0: one, 1: axis_sae(2)})
    first, second = report.dictionaries
    assert first.fve.value == pytest.approx(1 - 1.64 / (3 - (1.6**2 + 1.8**2) / 3))
    assert first.dead_fraction == 0.5
    assert first.errors.tolist() == pytest.approx([0, 1, 0.64])
    assert report.fve == pytest.approx((first.fve.value + 1) / 2)
    assert report.fve_std == pytest.approx((second.fve.value - first.fve.value) / math.sqrt(2))
    assert first.fve.low < first.fve.value < first.fve.high
    assert report.decomposition(3, 1).meta_latents == (1, 0)


def test_the_report_can_be_written():
    report = measure_meta(dictionary(), {0: axis_sae(2)})
    plain = json.loads(json.dumps(report.to_dict(per_latent=True), allow_nan=False))
    assert plain["fve_std"] is None
    assert plain["dictionaries"][0]["l0"] == pytest.approx(4 / 3)
    assert plain["kept"] == [0, 1, 3]
    assert set(report.to_dict()["dictionaries"][0]) == {"seed", "fve", "l0", "dead_fraction", "n_meta_latents"}
    assert MetaReport.from_dict(plain).decomposition(3) == report.decomposition(3)
    with pytest.raises(ConfigError, match="measure again"):
        MetaReport.from_dict(report.to_dict()).decomposition(3)
    assert "meta-dictionaries of 4 decoder directions at site" in str(report)
    assert "1 latent without a direction" in str(report)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        measure_meta(dictionary(), {})
    with pytest.raises(ShapeError, match="width 2"):
        measure_meta(dictionary(), {0: axis_sae(3)})
    with pytest.raises(DataError, match="1 of 2 decoder rows"):
        decoder_directions(axis_sae(2, decoder=torch.tensor([[1.0, 0.0], [0.0, 0.0]])))
    with pytest.raises(DataError, match="finite"):
        decoder_directions(axis_sae(2, decoder=torch.full((2, 2), torch.nan)))
    with pytest.raises(ConfigError, match="one group"):
        decoder_directions(CLT([2, 2], [2, 2], 4, activation=ReLU()))
    report = measure_meta(dictionary(), {0: axis_sae(2)})
    for latent, which in ((2, 0), (9, 0), (0, 1)):
        with pytest.raises(ConfigError, match="no decomposition"):
            report.decomposition(latent, which)
