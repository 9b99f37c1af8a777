"""Arrays of several sites: one token a row in all of them, and a digest that other content changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import ArrayRows, as_row_source, site_arrays
from monosema.data.site_arrays import SiteArrays

N, BATCH = 37, 5
TOKEN = torch.arange(N, dtype=torch.float32)
A = torch.stack([TOKEN, TOKEN + 0.25], 1)
B = torch.stack([TOKEN + 100, TOKEN + 200, TOKEN + 300], 1)
C = torch.stack([-TOKEN], 1)


def as_npy(tmp_path, array=B):
    np.save(tmp_path / "b.npy", array.numpy())
    return tmp_path / "b.npy"


def test_a_batch_has_the_sites_of_the_same_tokens_side_by_side(tmp_path):
    rows = as_row_source({"a": A, "b": as_npy(tmp_path)}, batch_size=BATCH, epochs=2, validation_fraction=0.2, seed=3)
    assert isinstance(rows, ArrayRows)
    assert (rows.layout.reads, rows.layout.is_autoencoder, rows.d_in, rows.d_out) == ((("a", 2), ("b", 3)), True, 5, 5)
    served = torch.cat(list(rows))
    token = served[:, 0]
    expected = torch.stack([token, token + 0.25, token + 100, token + 200, token + 300], 1)
    assert torch.equal(served, expected)
    assert len(served) == 2 * 30
    held = rows.validation
    assert torch.equal(held[:, 2], held[:, 0] + 100)
    assert (len(held), rows.n_validation) == (7, 7)
    assert not set(held[:, 0].tolist()) & set(token.tolist())


def test_the_order_is_that_of_one_array(tmp_path):
    together = torch.cat(list(ArrayRows(torch.cat([A, B], 1), BATCH, epochs=2, seed=3)))
    assert torch.equal(torch.cat(list(ArrayRows({"a": A, "b": B}, BATCH, epochs=2, seed=3))), together)
    assert torch.equal(torch.cat(list(ArrayRows(A, BATCH, targets=B, epochs=2, seed=3))), together)


def test_targets_are_what_is_written():
    one = ArrayRows(A, BATCH, targets=B)
    assert (one.layout.reads, one.layout.writes) == ((("input", 2),), (("target", 3),))
    several = ArrayRows({"a": A, "b": B}, BATCH, targets={"c": C, "d": B})
    assert several.layout.hook_names == ("a", "b", "c", "d")
    assert (several.d_in, several.d_out) == (5, 4)
    first = next(several)
    assert torch.equal(first[:, 5], -first[:, 0])


def test_sites_are_recorded_where_they_have_names():
    assert ArrayRows({"a": A}, BATCH).record()["hook_names"] == ["a"]
    assert ArrayRows({"a": A}, BATCH, targets={"b": B}).record()["targets"] == ["b"]
    assert not {"hook_names", "targets"} & ArrayRows(A, BATCH, targets=B).record().keys()


def test_several_arrays_resume_bit_for_bit():
    def make(b=B):
        return ArrayRows({"a": A.numpy(), "b": b}, BATCH, seed=1)

    whole, rows = list(make()), make()
    next(rows)
    state = json.loads(json.dumps(rows.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    assert torch.equal(torch.cat(list(resumed)), torch.cat(whole[1:]))
    changed = B.clone()
    changed[20, 1] += 1
    for other in (make(changed), ArrayRows({"b": B, "a": A}, BATCH, seed=1), ArrayRows({"a": A}, BATCH, seed=1)):
        with pytest.raises(DataError, match="other rows"):
            other.load_state_dict(state)


def test_types_and_leading_dimensions_may_differ():
    rows = next(ArrayRows({"a": A[:36].reshape(4, 9, 2).half(), "b": B[:36].double().numpy()}, BATCH))
    assert rows.dtype == torch.float64
    assert torch.equal(rows[:, 2], rows[:, 0] + 100)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ({"a": A, "b": B, "c": C[:-1]}, {}, DataError, "'a' has 37 rows, 'c' has 36"),
        (A, {"targets": B[:-2]}, DataError, "'input' has 37 rows, 'target' has 35"),
        ({"a": A}, {"targets": {"b": B[:-2]}}, DataError, "'a' has 37 rows, 'b' has 35"),
        ({"a": A}, {"targets": B}, ConfigError, "both as one array"),
        (A, {"targets": {"b": B}}, ConfigError, "both as {site: array}"),
        ({"a": A}, {"targets": {"a": A}}, ConfigError, "'a' is given as an array and as a target"),
        ({"a": A}, {"targets": {}}, ConfigError, "mapping of arrays is empty"),
        ({}, {}, ConfigError, "mapping of arrays is empty"),
        ({"a+b": A}, {}, ConfigError, r"'a\+b' cannot name a site"),
        ({3: A}, {}, ConfigError, "3 cannot name a site"),
        ({"a": A}, {"d_in": 1}, ConfigError, "d_in splits the columns of one array"),
        (A, {"d_in": 1, "targets": B}, ConfigError, "d_in splits the columns of one array"),
        ({"a": A, "b": B.int()}, {}, DataError, "of 'b' must be floating-point"),
        ({"a": A, "b": [1.0]}, {}, DataError, "of 'b' must be a tensor, an array or the path .* got list"),
        ({"a": A, "b": "missing.npy"}, {}, FileError, "cannot read activations of 'b' from missing.npy"),
    ],
)
def test_arrays_that_do_not_belong_together_say_which(source, options, error, message):
    with pytest.raises(error, match=message):
        ArrayRows(source, BATCH, **options)


def test_values_that_are_not_finite_name_their_array():
    broken = B.clone()
    broken[20, 1] = float("inf")
    with pytest.raises(DataError, match="the array 'b' holds values that are not finite"):
        list(ArrayRows({"a": A, "b": broken}, BATCH))


def test_the_digest_is_of_content_type_and_shape(tmp_path):
    digest = SiteArrays(B).digest
    assert {SiteArrays(same).digest for same in (B.clone(), B.numpy(), as_npy(tmp_path), B.T.contiguous().T)} == {
        digest
    }
    for row in range(N):
        changed = B.clone()
        changed[row, 1] += 1
        assert SiteArrays(changed).digest != digest
    zeros = torch.zeros(6, 4)
    others = [zeros, zeros.half(), zeros.bfloat16(), zeros.reshape(8, 3), zeros[:3], torch.zeros(6, 8).half()]
    assert len({SiteArrays(other).digest for other in others}) == len(others)


@pytest.mark.parametrize("step_bytes", [1, 100, 2**24])
def test_the_digest_does_not_depend_on_how_it_is_read(monkeypatch, step_bytes):
    digest = SiteArrays(B).digest
    monkeypatch.setattr(site_arrays, "_STEP_BYTES", step_bytes)
    assert SiteArrays(B).digest == digest


def test_of_large_arrays_evenly_spaced_rows_are_in_the_digest(monkeypatch):
    monkeypatch.setattr(site_arrays, "DIGEST_BYTES", B.nbytes + A.nbytes - 1)
    monkeypatch.setattr(site_arrays, "DIGEST_ROWS", 5)
    chosen = [0, 9, 18, 27, 36]
    digest = SiteArrays({"a": A, "b": B}).digest
    noticed = []
    for row in range(N):
        changed = B.clone()
        changed[row, 2] += 1
        if SiteArrays({"a": A, "b": changed}).digest != digest:
            noticed.append(row)
    assert noticed == chosen
    order = torch.arange(N).roll(1)
    assert SiteArrays({"a": A[order], "b": B[order]}).digest != digest
    assert SiteArrays({"a": A[:-1], "b": B[:-1]}).digest != digest
