"""Rows of outlying norm: which they are, what is served in their place, and that a resumed source does the same."""

from __future__ import annotations

import json
import math

import pytest
import torch
from data_cache import number_cache, values
from data_tiny import BOS, SITES, hooked_rows, random_split, tiny_llama
from torch import Tensor

from monosema.coders import SAE, Transcoder
from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import ActivationCache, ActivationStream, ArrayRows, IterableRows, write_cache
from monosema.data.outliers import NormRule, instead_of, outlier_record, recorded_rule, row_norms
from monosema.data.recorded_outliers import rule_for

LOUD = 7
"""The token whose activations are made a thousand times larger."""


def rows_with_outliers(n: int = 400, every: int = 20) -> Tensor:
    rows = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    rows[::every] *= 1000
    return rows


def loud_llama():
    model = tiny_llama()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[LOUD] *= 1000
    return model


def test_norms_of_any_size_are_exact():
    rows = torch.tensor([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
    assert row_norms(rows).tolist() == pytest.approx([5, 5e30, 5e-30, 0], rel=1e-6)
    assert row_norms(rows[:1].bfloat16()).tolist() == [5]
    assert row_norms(torch.tensor([[3e200, 4e200]], dtype=torch.float64)).tolist() == pytest.approx([5e200])


def test_the_rule_by_hand():
    # norms at the first site: 0, 1, 2, 3, 30; the median of those not 0 is the lower one, 2; the limit is 20
    rows = torch.tensor([[0.0, 0.0, 5.0], [1, 0, 5], [2, 0, 51], [3, 0, 5], [30, 0, 5]])
    rule = NormRule(10.0).estimated([("a", 2), ("b", 1)], [rows])
    assert rule.medians == (2.0, 5.0)
    assert rule.outliers(rows).tolist() == [False, False, True, False, True]  # 51 > 10 * 5 at the other site
    assert rule.outliers(rows[:, :2]).tolist() == [False, False, False, False, True]  # the first sites alone
    assert rule.of_sites(["b"]).outliers(rows[:, 2:]).tolist() == [False, False, True, False, False]
    assert NormRule(15.0, rule.sites, rule.medians).outliers(rows[4:]).tolist() == [False]  # 30 does not exceed 30
    with pytest.raises(DataError, match=r"sites \[2, 1\] wide, rows of 4 columns"):
        rule.outliers(torch.zeros(1, 4))


def test_a_site_that_is_all_zero_has_no_outliers():
    rule = NormRule(10.0).estimated([("a", 2)], [torch.zeros(3, 2)])
    assert rule.medians == (0.0,)
    assert not bool(rule.outliers(torch.ones(2, 2)).any())


def test_places_of_outliers_are_taken_evenly():
    outlier = torch.tensor([True, False, True, True, False, False])
    assert instead_of(outlier, torch.tensor([10, 11, 12, 13, 14, 15])).tolist() == [10, 12, 14]
    assert instead_of(torch.ones(4, dtype=torch.bool), torch.tensor([1, 2])).tolist() == [1, 1, 2, 2]
    with pytest.raises(DataError, match="outlier_norm_multiple"):
        instead_of(torch.ones(2, dtype=torch.bool), torch.zeros(0))


@pytest.mark.parametrize("multiple", [0.5, 0, -1, math.nan, math.inf])
def test_a_multiple_that_would_leave_out_ordinary_rows_is_refused(multiple):
    with pytest.raises(ConfigError, match="outlier_norm_multiple must be at least 1, or None"):
        ArrayRows(torch.randn(20, 3), 5, outlier_norm_multiple=multiple)


def test_the_record_is_read_back_and_damage_is_refused():
    rule = NormRule(10.0, (("a", 2), ("b", 1)), (2.0, 5.5))
    assert recorded_rule(json.loads(json.dumps(outlier_record(rule)))) == rule
    assert recorded_rule(outlier_record(None)) is None
    assert recorded_rule({}) == NormRule(10.0)
    for damaged in ({"outlier_norm_multiple": "10"}, {"outlier_norm_multiple": 0}, {"outlier_norm_multiple": True}):
        with pytest.raises(FileError, match="outlier_norm_multiple must be a number"):
            recorded_rule(damaged)
    for sites in ("x", [["a", 2]], [["a", 2, -1.0]], [["a", 2.5, 1.0]], [["a", 2, math.nan]], [[1, 2, 3.0]]):
        with pytest.raises(FileError, match="median_norms must be a list"):
            recorded_rule({"outlier_norm_multiple": 10.0, "median_norms": sites})


def test_a_record_must_fit_the_dictionary():
    coder = SAE(4, 8)
    coder.metadata.update({"outlier_norm_multiple": 10.0, "median_norms": [["a", 3, 1.0]]})
    with pytest.raises(FileError, match=r"sites \[3\] wide, it reads 4 columns"):
        rule_for(coder)
    assert rule_for(coder, None) is None
    other = Transcoder(4, 3, 8)
    other.metadata.update({"outlier_norm_multiple": 5, "median_norms": [["a", 4, 1.0], ["b", 3, 2.0]]})
    assert rule_for(other) == NormRule(5.0, (("a", 4), ("b", 3)), (1.0, 2.0))
    assert rule_for(other, 7.0) == NormRule(7.0, (("a", 4), ("b", 3)), (1.0, 2.0))


@pytest.mark.parametrize("kind", [ArrayRows, IterableRows])
def test_batches_are_full_of_ordinary_rows(kind):
    rows = rows_with_outliers()
    given = rows if kind is ArrayRows else [rows[:150], rows[150:]]
    source, everything = kind(given, 40), kind(given, 40, outlier_norm_multiple=None)
    served, plain = torch.cat(list(source)), torch.cat(list(everything))
    assert served.shape == plain.shape
    loud = plain.norm(dim=1) > 100
    assert int(loud.sum()) == source.outliers.n_left_out == 20
    assert torch.equal(served[~loud], plain[~loud]), "ordinary rows are where they were"
    assert float(served.norm(dim=1).max()) < 100
    assert bool((served[loud].unsqueeze(1) == rows).all(2).any(1).all()), "each is a row of the source"
    assert everything.outliers.n_left_out == 0


def test_a_batch_of_outliers_only_is_filled_from_the_first_rows():
    rows = rows_with_outliers(100, every=101)
    rows[60:70] *= 1000
    source = IterableRows([rows], 10)
    served = torch.cat(list(source))
    ordinary = rows[rows.norm(dim=1) < 100]
    assert torch.equal(served[60:70], ordinary[[0, 8, 17, 26, 35, 44, 53, 62, 71, 80]])  # j * 89 // 10
    assert source.outliers.n_left_out == 11  # the row of number 0 is one, too


def test_rows_without_outliers_are_served_bit_for_bit_as_without_the_rule():
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        torch.cat(list(ArrayRows(rows, 30))), torch.cat(list(ArrayRows(rows, 30, outlier_norm_multiple=None)))
    )


def test_outliers_of_the_target_are_left_out_as_well():
    x, y = torch.randn(100, 4, generator=torch.Generator().manual_seed(2)), torch.ones(100, 3)
    y[5] *= 11
    source = ArrayRows(x, 10, targets=y)
    assert float(torch.cat(list(source))[:, 4:].max()) == 1
    assert source.outliers.n_left_out == 1


def test_arrays_resume_with_the_same_median_and_count():
    def source() -> ArrayRows:
        return ArrayRows(rows_with_outliers(), 30, epochs=2)

    whole, first = list(source()), source()
    for _ in range(15):
        next(first)
    resumed = source()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed.outliers.rule == first.outliers.rule
    assert resumed.outliers.n_left_out == first.outliers.n_left_out > 0
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole[15:], strict=True))
    with pytest.raises(DataError, match="outlier_norm_multiple"):
        ArrayRows(rows_with_outliers(), 30, epochs=2, outlier_norm_multiple=None).load_state_dict(first.state_dict())


def stream(model, **options) -> ActivationStream:
    given = {"batch_size": 10, "chunk_contexts": 5, "model_batch_size": 2, "seed": 3, "epochs": 2, **options}
    return ActivationStream(model, random_split(), SITES[0], **given)


def test_a_stream_leaves_them_out_counts_and_resumes_bit_for_bit():
    model = loud_llama()
    plain = torch.cat(list(stream(model, outlier_norm_multiple=None)))
    source = stream(model)
    loud = plain.norm(dim=1) > 10 * source.norm_rule().medians[0]
    assert 0.01 < float(loud.float().mean()) < 0.1
    served: list[Tensor] = []
    states = []
    for batch in source:
        served.append(batch)
        states.append(
            json.loads(json.dumps({k: v for k, v in source.state_dict().items() if not isinstance(v, Tensor)}))
        )
        states[-1] |= {k: v for k, v in source.state_dict().items() if isinstance(v, Tensor)}
    rows = torch.cat(served)
    assert torch.equal(rows[~loud], plain[~loud]) and rows.shape == plain.shape
    assert bool((rows.norm(dim=1) <= 10 * source.norm_rule().medians[0]).all())
    assert source.outliers.n_left_out == int(loud.sum())
    for done in (1, len(served) // 2, len(served) - 2):
        resumed = stream(model)
        resumed.load_state_dict(states[done - 1])
        assert torch.equal(next(resumed), served[done])
        assert resumed.state_dict()["outliers"] == states[done]["outliers"]


def test_a_state_from_before_the_rule_goes_on_without_it():
    model = loud_llama()
    before = stream(model, outlier_norm_multiple=None)
    next(before)
    state = {key: value for key, value in before.state_dict().items() if key != "outliers"}
    resumed = stream(model, outlier_norm_multiple=None)
    resumed.load_state_dict(state)
    assert torch.equal(next(resumed), next(before))


def test_a_cache_holds_every_row_and_leaves_them_out_when_it_is_read(tmp_path):
    model = loud_llama()
    write_cache(stream(model), tmp_path / "cache", dtype="float32", shard_bytes=2000)
    caught = hooked_rows(model, random_split().contexts)[SITES[0]][random_split().contexts != BOS]
    everything = ActivationCache(tmp_path / "cache", 1, outlier_norm_multiple=None)
    assert len(list(everything)) == len(caught)
    cache = ActivationCache(tmp_path / "cache", 10)
    limit = 10 * cache.norm_rule().medians[0]
    assert float(torch.cat(list(cache)).norm(dim=1).max()) <= limit < float(caught.norm(dim=1).max())
    assert (
        cache.outliers.n_left_out
        == int(
            (
                torch.cat(list(ActivationCache(tmp_path / "cache", 10, outlier_norm_multiple=None))).norm(dim=1) > limit
            ).sum()
        )
        > 0
    )


def test_a_cache_resumes_with_the_same_median(tmp_path):
    number_cache(tmp_path / "cache")
    first = ActivationCache(tmp_path / "cache", 10, mix_bytes=1, outlier_norm_multiple=1.5)
    whole = list(ActivationCache(tmp_path / "cache", 10, mix_bytes=1, outlier_norm_multiple=1.5))
    for _ in range(len(whole) - 3):
        next(first)
    resumed = ActivationCache(tmp_path / "cache", 10, mix_bytes=1, outlier_norm_multiple=1.5)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole[-3:], strict=True))
    assert first.outliers.n_left_out > 0 and len(values(3)) == 3
