"""``ground_truth``: dictionaries whose every figure is known."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosema.coders import SAE, ReLU, SparseCoder, Transcoder
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.data import SyntheticFeatures
from monosema.evaluation.benchmarks import GroundTruthReport, KnownFeatures, TruthConfig, ground_truth
from monosema.evaluation.benchmarks.truth_report import FeatureMatches

AXES = torch.eye(4, dtype=torch.float64)
MAGNITUDES = torch.tensor(
    [[1.0, 0, 0, 0], [2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0.5, 3], [0, 0.2, 0, 0], [0, 0, 0, 1]], dtype=torch.float64
)
KNOWN = KnownFeatures(directions=AXES, magnitudes=MAGNITUDES)


def sae(encoder: Tensor, decoder: Tensor, bias: float = 0.0) -> SparseCoder:
    """A latent for each row of ``encoder`` and ``decoder``."""
    coder = SAE(decoder.shape[1], len(decoder), activation=ReLU(), dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.copy_(encoder)
        coder.W_dec.copy_(decoder)
        assert coder.b_enc is not None
        coder.b_enc.fill_(bias)
        if coder.b_dec is not None:
            coder.b_dec.zero_()
    return coder


def values(report: GroundTruthReport, *names: str) -> list[float]:
    return [getattr(report, name).value for name in names]


def matches(report: GroundTruthReport) -> FeatureMatches:
    assert report.features is not None
    return report.features


DIRECTIONS = ("mean_matched_cosine", "mean_max_cosine", "recovered_fraction")
DETECTION = ("precision", "recall", "f1")


@pytest.mark.parametrize(("order", "scale"), [([0, 1, 2, 3], 1.0), ([2, 0, 3, 1], 1.0), ([3, 2, 1, 0], 4.0)])
def test_a_perfect_dictionary_permuted_and_scaled_is_perfect(order: list[int], scale: float) -> None:
    report = ground_truth(sae(AXES[order] * scale, AXES[order] / scale), KNOWN)
    assert values(report, *DIRECTIONS, *DETECTION, "magnitude_ratio") == [1.0] * 7
    assert (report.uniqueness, report.n_recovered, report.n_duplicate, report.n_false, report.n_dead) == (1, 4, 0, 0, 0)
    assert [order[latent] for latent in matches(report).latent.tolist()] == [0, 1, 2, 3]
    assert report.l0 == report.true_l0 == 8 / 6
    assert matches(report).frequency.tolist() == [2 / 6, 2 / 6, 2 / 6, 2 / 6]
    assert report.notes == ("the intervals rest on 4 features; below 10 they are too narrow",)


def test_shrinkage_is_what_is_missing_of_the_magnitude() -> None:
    report = ground_truth(sae(AXES * 0.8, AXES), KNOWN)
    assert values(report, "magnitude_ratio", "f1") == [pytest.approx(0.8), 1.0]


def test_the_length_of_directions_is_theirs_to_choose() -> None:
    known = KnownFeatures(directions=AXES * 5, magnitudes=MAGNITUDES)
    assert values(ground_truth(sae(AXES, AXES), known), "magnitude_ratio") == [pytest.approx(1.0)]


def test_a_latent_learned_twice_is_a_duplicate() -> None:
    both = torch.cat([AXES, AXES[:1]])
    report = ground_truth(sae(both, both), KNOWN)
    assert values(report, *DIRECTIONS) == [1.0] * 3
    assert (report.uniqueness, report.n_recovered, report.n_duplicate, report.n_false) == (4 / 5, 4, 1, 0)


def test_a_missing_feature_counts_as_nothing() -> None:
    magnitudes = MAGNITUDES.clone()
    magnitudes[0, 3] = 1  # where latent 0 fires
    report = ground_truth(sae(AXES[:3], AXES[:3]), KnownFeatures(directions=AXES, magnitudes=magnitudes))
    assert matches(report).latent.tolist() == [0, 1, 2, -1]
    assert values(report, *DIRECTIONS, *DETECTION) == [0.75] * 6
    assert values(report, "magnitude_ratio") == [1.0]
    assert math.isnan(matches(report).magnitude_ratio[3])


def test_one_latent_cannot_stand_for_two_features() -> None:
    between = normalize(AXES[:1] + AXES[1:2], dim=1)
    known = KnownFeatures(directions=AXES[:2], magnitudes=MAGNITUDES[:, :2])
    report = ground_truth(sae(between, between), known, TruthConfig(threshold=0.5))
    assert values(report, *DIRECTIONS) == [
        pytest.approx(math.sqrt(0.5) / 2),
        pytest.approx(math.sqrt(0.5)),
        0.5,
    ]


def test_a_false_and_a_dead_latent() -> None:
    decoder = torch.cat([AXES, torch.full((1, 4), 0.5, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)])
    encoder = torch.cat([AXES, torch.full((1, 4), 0.5, dtype=torch.float64), -AXES[:1]])
    report = ground_truth(sae(encoder, decoder), KNOWN)
    # The mixture is nearest to feature 0 (the first of equals), the zero row to none.
    assert (report.n_recovered, report.n_duplicate, report.n_false, report.n_dead) == (4, 0, 2, 1)
    assert report.uniqueness == 4 / 6


def test_the_threshold_decides_what_is_found() -> None:
    tilted = AXES.clone()
    tilted[0, :2] = torch.tensor([0.8, -0.6])
    report = ground_truth(sae(AXES, tilted), KNOWN)
    assert matches(report).cosine.tolist() == pytest.approx([0.8, 1, 1, 1])
    assert (report.recovered_fraction.value, report.n_recovered, report.n_false) == (0.75, 3, 1)
    assert ground_truth(sae(AXES, tilted), KNOWN, TruthConfig(threshold=0.7)).recovered_fraction.value == 1
    # Its contribution along the direction is 0.8 of the magnitude, and counts only where it is found.
    assert matches(report).magnitude_ratio[0] == pytest.approx(0.8)
    assert report.magnitude_ratio.value == pytest.approx(1.0)


def test_a_direction_backwards_is_not_the_direction() -> None:
    report = ground_truth(sae(-AXES, -AXES), KNOWN)
    assert values(report, "recovered_fraction", "recall") == [0.0, 0.0]
    assert report.n_false == 4


def test_precision_and_recall_by_hand() -> None:
    encoder = AXES.clone()
    encoder[0, 1] = 1.0
    report = ground_truth(sae(encoder, AXES, bias=-0.6), KNOWN)
    # Feature 0 is in rows 0 and 1, where its latent fires; it fires in row 2 as well, for feature 1.
    # Of features 1 and 2, the magnitudes 0.2 and 0.5 are below the bias.
    assert matches(report).precision.tolist() == [2 / 3, 1, 1, 1]
    assert matches(report).recall.tolist() == [1, 0.5, 0.5, 1]
    assert matches(report).f1.tolist() == pytest.approx([0.8, 2 / 3, 2 / 3, 1])
    assert matches(report).magnitude_ratio.tolist() == pytest.approx([(0.4 + 1.4) / 3, 0.4, 0.4, (2.4 + 0.4) / 4])
    assert report.recall.value == 0.75


def test_a_silent_latent_detects_nothing() -> None:
    report = ground_truth(sae(AXES, AXES, bias=-10), KNOWN)
    assert values(report, *DETECTION) == [0.0] * 3
    assert math.isnan(report.magnitude_ratio.value)
    assert report.n_dead == 4


def test_a_feature_that_never_fires_is_left_out_of_detection() -> None:
    magnitudes = MAGNITUDES.clone()
    magnitudes[:, 3] = 0
    report = ground_truth(sae(AXES, AXES), KnownFeatures(directions=AXES, magnitudes=magnitudes))
    assert values(report, *DIRECTIONS, *DETECTION) == [1.0] * 6
    assert math.isnan(matches(report).recall[3])
    assert report.n_silent_features == 1
    assert "features that fire on no row: 1;" in report.notes[0]


def test_random_rows_match_as_well_as_the_best_of_all_pairings() -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    truth = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    cosine = normalize(truth, dim=1) @ normalize(decoder, dim=1).T
    best = max(sum(float(cosine[i, j]) for i, j in enumerate(way)) / 4 for way in itertools.permutations(range(5), 4))
    report = ground_truth(sae(decoder, decoder), KnownFeatures(directions=truth, magnitudes=torch.ones(2, 4)))
    assert report.mean_matched_cosine.value == pytest.approx(best, abs=1e-12)
    assert report.mean_max_cosine.value == pytest.approx(float(cosine.amax(1).mean()), abs=1e-12)


def test_synthetic_rows_are_those_of_the_seed_over_several_steps() -> None:
    features = SyntheticFeatures(kind="hierarchical", d_in=64, n_features=8, l0=2.0)
    directions = features.directions().double()
    coder = sae(directions, directions, bias=-0.3)
    report = ground_truth(coder, features, TruthConfig(n_rows=5000, seed=7))
    fires = (features.rows(5000, seed=7).double() @ directions.T - 0.3) > 0
    has = features.latents(5000, seed=7) > 0
    recall = (fires & has).sum(0) / has.sum(0)
    torch.testing.assert_close(matches(report).recall, recall.double())
    torch.testing.assert_close(matches(report).precision, ((fires & has).sum(0) / fires.sum(0)).double())
    assert report.n_rows == 5000
    assert report.mean_matched_cosine.value == pytest.approx(1.0)
    assert ground_truth(coder, features, TruthConfig(n_rows=5000, seed=7)) == report
    assert ground_truth(coder, features, TruthConfig(n_rows=5000, seed=8)).recall != report.recall


def test_rows_may_hold_more_than_the_features() -> None:
    noisy = KnownFeatures(directions=AXES, magnitudes=MAGNITUDES, rows=MAGNITUDES + 1)
    assert ground_truth(sae(AXES, AXES), noisy).l0 == 4
    assert ground_truth(sae(AXES, AXES), KNOWN).l0 == 8 / 6


def test_a_coder_that_scales_tokens_has_no_magnitudes() -> None:
    coder = sae(AXES, AXES)
    coder.set_token_scaling("constant_norm")
    report = ground_truth(coder, KNOWN)
    assert math.isnan(report.magnitude_ratio.value)
    assert "scales tokens" in report.notes[0]


def test_the_report_is_json_and_text() -> None:
    report = ground_truth(sae(AXES[:3], AXES[:3]), KNOWN)
    plain = json.loads(json.dumps(report.to_dict(per_latent=True)))
    assert plain["mean_matched_cosine"]["value"] == 0.75
    assert plain["features"]["magnitude_ratio"] == [1, 1, 1, None]
    assert "features" not in report.to_dict()
    assert "3 latents against 4 known features" in str(report)
    for each in fields(report):
        assert each.name in ("features", "notes", "hook_name", "config") or f" {each.name} " in str(report)
    assert f"mean_matched_cosine  {report.mean_matched_cosine}" in str(report)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"coder": Transcoder(4, 4, 8, activation=ReLU())}, None, ""),
        ({"coder": SAE(5, 8, activation=ReLU())}, ShapeError, "width is 5, that of the true directions 4"),
        ({"coder": sae(AXES, AXES * math.nan)}, DataError, "coder's W_dec must be finite"),
        ({"coder": sae(AXES * math.nan, AXES)}, DataError, "coder's W_enc_rows must be finite"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception] | None, message: str) -> None:
    if error is None:
        transcoder = options["coder"]
        transcoder.bind("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out", {})
        error, message = ConfigError, "give one"
    with pytest.raises(error, match=message):
        ground_truth(**{"coder": sae(AXES, AXES), "features": KNOWN, **options})


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_rows must be at least 1"):
        TruthConfig(n_rows=0)
    with pytest.raises(ConfigError, match=r"threshold must be in \[-1, 1\)"):
        TruthConfig(threshold=1.0)


@pytest.mark.parametrize(
    ("directions", "magnitudes", "rows", "error", "message"),
    [
        (AXES[0], MAGNITUDES, None, ShapeError, "directions must be"),
        (AXES, MAGNITUDES[:, :3], None, ShapeError, "a column for each direction"),
        (AXES, MAGNITUDES[:0], None, ShapeError, "magnitudes must be"),
        (AXES, MAGNITUDES, MAGNITUDES[:, :2], ShapeError, r"rows must be \[6, 4\]"),
        (AXES * torch.tensor([[1.0], [1], [0], [1]]), MAGNITUDES, None, DataError, "a direction is zero"),
        (AXES, MAGNITUDES * math.nan, None, DataError, "magnitudes must be finite"),
    ],
)
def test_bad_features_are_refused(
    directions: Tensor, magnitudes: Tensor, rows: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        KnownFeatures(directions=directions, magnitudes=magnitudes, rows=rows)


def test_rows_that_are_not_finite_are_refused() -> None:
    rows = MAGNITUDES.clone()
    rows[2, 1] = math.inf
    with pytest.raises(DataError, match="rows from 0 must be finite"):
        ground_truth(sae(AXES, AXES), KnownFeatures(directions=AXES, magnitudes=MAGNITUDES, rows=rows))
