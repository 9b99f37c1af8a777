"""Rows from arrays and iterables: every row once, exact resumption, nothing that is not finite."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import ArrayRows, IterableRows, as_row_source

N, D, BATCH = 37, 3, 5
ROWS = torch.arange(N * D, dtype=torch.float32).reshape(N, D)


def first_column(batches) -> list[float]:
    return torch.cat(list(batches))[:, 0].tolist()


def as_npy(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    return tmp_path / "rows.npy"


@pytest.mark.parametrize("kind", ["tensor", "bfloat16", "float16", "numpy", "npy", "npy string", "contexts"])
def test_arrays_of_every_kind_serve_each_row_once(tmp_path, kind):
    source = {
        "tensor": lambda: ROWS.clone().requires_grad_(),
        "bfloat16": lambda: ROWS.bfloat16(),
        "float16": lambda: ROWS.half().numpy(),
        "numpy": lambda: ROWS.double().numpy(),
        "npy": lambda: as_npy(tmp_path),
        "npy string": lambda: str(as_npy(tmp_path)),
        "contexts": lambda: ROWS[:36].reshape(4, 9, D),
    }[kind]()
    rows = as_row_source(source, batch_size=BATCH)
    assert isinstance(rows, ArrayRows)
    served = torch.cat(list(rows))
    assert served.shape == (35, D)
    assert not served.requires_grad
    expected = {tuple(row) for row in ROWS.to(served.dtype).tolist()}
    assert len({tuple(row) for row in served.tolist()} & expected) == 35
    if kind == "bfloat16":
        assert served.dtype == torch.bfloat16


def test_memory_mapped_rows_are_not_read_into_memory(tmp_path):
    rows = ArrayRows(as_npy(tmp_path), BATCH)
    assert all(isinstance(array, np.memmap) for array in rows._arrays._arrays.values())
    assert next(rows).shape == (BATCH, D)


def test_validation_rows_are_set_aside_by_the_seed():
    rows = ArrayRows(ROWS, BATCH, validation_fraction=0.3, epochs=3, seed=1)
    held = set(rows.validation[:, 0].tolist())
    served = first_column(rows)
    assert len(held) == round(0.3 * N)
    assert not held & set(served)
    assert len(served) == 3 * 25
    assert set(ArrayRows(ROWS, BATCH, validation_fraction=0.3, seed=2).validation[:, 0].tolist()) != held
    assert len(ArrayRows(ROWS, BATCH).validation) == 0


def test_each_epoch_has_its_own_order_and_the_seed_decides_it():
    served = first_column(ArrayRows(ROWS, BATCH, epochs=2, seed=1))
    assert sorted(served[:35]) != served[:35] != served[35:]
    assert served == first_column(ArrayRows(ROWS, BATCH, epochs=2, seed=1))
    assert served != first_column(ArrayRows(ROWS, BATCH, epochs=2, seed=2))


@pytest.mark.parametrize("source", [ROWS, ROWS.bfloat16(), ROWS.numpy()])
def test_arrays_resume_bit_for_bit_at_every_batch(source):
    def make():
        return ArrayRows(source, BATCH, epochs=2, seed=1, validation_fraction=0.1)

    whole, rows = list(make()), make()
    for done in range(len(whole) + 1):
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(rows.state_dict())))
        rest = list(resumed)
        assert len(rest) == len(whole) - done
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[done:], strict=True))
        next(rows, None)


def test_a_state_of_other_rows_is_refused():
    state = ArrayRows(ROWS, BATCH).state_dict()
    changed = ROWS.clone()
    changed[N // 2, 1] += 1
    reordered = ROWS.clone()
    reordered[1:-1] = ROWS[1:-1].flip(0)
    for other in (
        ArrayRows(changed, BATCH),
        ArrayRows(reordered, BATCH),
        ArrayRows({"blocks.0.hook_mlp_out": ROWS}, BATCH),
        ArrayRows(ROWS, 6),
        ArrayRows(ROWS, BATCH, seed=1),
        ArrayRows(ROWS[:-1], BATCH),
        ArrayRows(ROWS, BATCH, validation_fraction=0.2),
    ):
        with pytest.raises(DataError, match="other rows"):
            other.load_state_dict(state)


def test_a_refused_state_says_what_differs():
    state = ArrayRows(ROWS, BATCH).state_dict()
    with pytest.raises(DataError, match=r"differ in batch_size: 5 -> 6$"):
        ArrayRows(ROWS, 6).load_state_dict(state)
    with pytest.raises(DataError, match=r"differ in digest: '\w{32}' -> '\w{32}'$"):
        ArrayRows(-ROWS, BATCH).load_state_dict(state)


def test_plan_and_preview():
    rows = ArrayRows(ROWS, BATCH, epochs=2)
    rows.plan(70)
    with pytest.raises(DataError, match="wants 75 rows, the array gives 70 in 2 epoch"):
        rows.plan(75)
    seen = rows.preview(7)
    assert torch.equal(torch.cat([next(rows), next(rows)])[:7], seen)


def test_transcoder_rows_are_split_by_d_in():
    rows = ArrayRows(ROWS, BATCH, d_in=2)
    assert (rows.d_in, rows.d_out, rows.layout.is_autoencoder) == (2, 1, False)
    assert (ArrayRows(ROWS, BATCH).d_in, ArrayRows(ROWS, BATCH).d_out) == (3, 3)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (ROWS.int(), {}, DataError, "floating-point"),
        (ROWS[:, 0], {}, DataError, r"\[n, d\]"),
        (ROWS.int().numpy(), {}, DataError, "floating-point"),
        (ROWS[:3], {}, DataError, "3 training rows, one batch needs 5"),
        (ROWS, {"validation_fraction": 1.0}, ConfigError, "below 1"),
        (ROWS, {"batch_size": 0}, ConfigError, "at least 1"),
        (ROWS, {"epochs": 0}, ConfigError, "at least 1"),
        ("missing.npy", {}, FileError, "cannot read activations"),
    ],
)
def test_arrays_that_cannot_be_served_say_why(source, options, error, message):
    with pytest.raises(error, match=message):
        ArrayRows(source, **{"batch_size": BATCH, **options})


def test_archives_and_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", rows=ROWS.numpy())
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("a.npz", "b.npy"):
        with pytest.raises(FileError, match="cannot read activations"):
            ArrayRows(tmp_path / name, BATCH)


def test_values_that_are_not_finite_are_refused():
    broken = ROWS.clone()
    broken[20, 1] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        list(ArrayRows(broken, BATCH))
    with pytest.raises(DataError, match="not finite"):
        list(IterableRows([broken], BATCH))


@pytest.mark.parametrize(
    "make",
    [
        lambda: [ROWS[:4], ROWS[4:5], ROWS[5:30], ROWS[30:]],
        lambda: iter([ROWS[:4], ROWS[4:]]),
        lambda: DataLoader(TensorDataset(ROWS), batch_size=8),
        lambda: DataLoader(ROWS, batch_size=6),
        lambda: list(ROWS),
        lambda: (part.numpy() for part in ROWS.split(7)),
        lambda: [ROWS[:36].reshape(4, 9, D), ROWS[36:]],
        lambda: [(ROWS, torch.zeros(N))],
    ],
)
def test_iterables_are_cut_anew_in_the_order_they_come(make):
    rows = as_row_source(make(), batch_size=BATCH)
    assert isinstance(rows, IterableRows)
    assert rows.d_in == D
    assert torch.equal(rows.preview(7), ROWS[:7])
    batches = list(rows)
    assert [len(batch) for batch in batches] == [BATCH] * 7
    assert torch.equal(torch.cat(batches), ROWS[:35])


def test_epochs_of_an_iterable_run_on_and_a_one_shot_iterator_has_only_one():
    batches = list(IterableRows([ROWS], BATCH, epochs=2))
    assert torch.equal(torch.cat(batches), torch.cat([ROWS, ROWS])[:70])
    with pytest.raises(ConfigError, match="read once only"):
        IterableRows(iter([ROWS]), BATCH, epochs=2)


@pytest.mark.parametrize("first", [BATCH, BATCH + 1])  # used up exactly, or with rows waiting
def test_a_change_of_width_is_refused(first):
    rows = IterableRows([ROWS[:first], ROWS[:, :2]], BATCH)
    next(rows)
    with pytest.raises(DataError, match="changed width from 3 to 2"):
        next(rows)


def test_iterables_without_rows_and_things_that_are_none_are_refused():
    with pytest.raises(DataError, match="gives no rows"):
        IterableRows([], BATCH)
    with pytest.raises(DataError, match="cannot read activations from a int"):
        as_row_source(3)
    with pytest.raises(ConfigError, match="at least 1"):
        IterableRows([ROWS], 0)
    with pytest.raises(ConfigError, match="targets= goes with arrays; of a list"):
        as_row_source([ROWS], targets=[ROWS])
