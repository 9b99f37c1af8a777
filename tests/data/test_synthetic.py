"""Activations made from a known dictionary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monosema.core.errors import ConfigError
from monosema.data import SyntheticFeatures

N = 60_000
KINDS: list[Any] = ["independent", "correlated", "hierarchical"]


def small(kind: Any, **options: Any) -> SyntheticFeatures:
    return SyntheticFeatures(kind=kind, **{"d_in": 8, "n_features": 12, "l0": 2.0, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_features_fire_as_often_as_they_should(kind: Any) -> None:
    features = small(kind)
    fires = features.latents(N) > 0
    assert float(features.probabilities().sum()) == pytest.approx(2.0)
    torch.testing.assert_close(fires.double().mean(0), features.probabilities(), atol=0.01, rtol=0)


def test_frequencies_fall_with_the_power_of_the_rank() -> None:
    p = small("independent", skew=1.0).probabilities()
    assert float(p[0] / p[3]) == pytest.approx(4.0)
    assert float(small("independent", skew=0.0).probabilities().std()) == pytest.approx(0, abs=1e-12)


def test_magnitudes_are_between_a_half_and_one_and_a_half() -> None:
    latents = small("independent").latents(N)
    active = latents[latents > 0]
    assert 0.5 <= float(active.min()) < 0.51
    assert 1.49 < float(active.max()) <= 1.5
    assert float(active.mean()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_sums_of_unit_directions(kind: Any) -> None:
    features = small(kind)
    directions = features.directions()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(features.rows(50, seed=3), features.latents(50, seed=3) @ directions)


def test_only_features_of_a_group_fire_together_more_often_than_chance() -> None:
    fires = (small("correlated", correlation=0.8).latents(N) > 0).double()
    correlation = torch.corrcoef(fires.T)
    assert float(correlation[0, 1]) > 0.2
    assert abs(float(correlation[0, 4])) < 0.03


def test_a_child_fires_only_with_its_parent_and_alone_among_its_siblings() -> None:
    groups = (small("hierarchical").latents(N) > 0).view(N, 3, 4)
    parent, children = groups[:, :, 0], groups[:, :, 1:].sum(2)
    assert int(children[~parent].sum()) == 0
    assert int(children.max()) == 1
    assert float(children[parent].double().mean()) == pytest.approx(0.5, abs=0.02)


def test_draws_repeat_and_seeds_differ() -> None:
    features = small("independent")
    assert torch.equal(features.rows(40), features.rows(40))
    assert not torch.equal(features.rows(40), features.rows(40, seed=1))
    assert not torch.equal(features.directions(), small("independent", seed=1).directions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_features": 0}, "at least 1"),
        ({"l0": 0.0}, "above 0"),
        ({"correlation": 1.0}, "correlation"),
        ({"child_probability": 1.5}, "child_probability"),
        ({"kind": "correlated", "n_features": 10}, "group_size 4"),
        ({"kind": "hierarchical", "group_size": 1, "n_features": 10}, "at least 2"),
        ({"l0": 11.0}, "lower l0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**{"kind": "independent", **options})


def test_rows_are_counted_from_one() -> None:
    with pytest.raises(ConfigError, match="n_rows"):
        small("independent").rows(0)
