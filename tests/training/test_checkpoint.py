"""Checkpoints: whole or not there, and the one before when the newest is damaged."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import torch

from monosema.core.errors import FileError
from monosema.training import CheckpointPlan, Checkpoints

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "low": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(7)}


def plan(newest: int, **options) -> CheckpointPlan:
    return CheckpointPlan(n_steps=100, newest=newest, **options)


def write(folder: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, plan(keep))
    for step in steps:
        checkpoints.write(step, TENSORS, {"step": step, "scale": 0.1 + step, "nothing": None})
    return checkpoints


def test_multiples_are_kept_for_good(tmp_path):
    checkpoints = Checkpoints(tmp_path, plan(1, kept_every=4, kept_steps=frozenset({2})))
    for step in (2, 4, 6, 8, 10):
        checkpoints.write(step, TENSORS, {"step": step})
    assert names(tmp_path) == ["latest", *(f"step_{step:09d}" for step in (2, 4, 8, 10))]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_comes_back_and_older_ones_go(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", plan(2))
    assert checkpoints.newest() is None
    write(checkpoints.folder, 5, 9, 10, keep=2)
    assert names(checkpoints.folder) == ["latest", "step_000000009", "step_000000010"]
    assert (checkpoints.folder / "latest").read_text() == "step_000000010\n"
    newest = checkpoints.newest()
    assert (newest.step, newest.path.name) == (10, "step_000000010")
    assert newest.plain == {"step": 10, "scale": 10.1, "nothing": None}
    assert newest.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert newest.tensors[name].dtype == tensor.dtype
        assert torch.equal(newest.tensors[name], tensor)


def test_callers_files_are_part_of_it_and_an_error_there_leaves_nothing(tmp_path):
    checkpoints = write(tmp_path, 1)
    checkpoints.write(2, TENSORS, {}, lambda folder: (folder / "more.txt").write_text("more"))
    assert (tmp_path / "step_000000002" / "more.txt").read_text() == "more"
    before = names(tmp_path)

    def fail(folder: Path) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        checkpoints.write(3, TENSORS, {}, fail)
    assert names(tmp_path) == before
    assert checkpoints.newest().step == 2


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "state.safetensors").read_bytes())
    data[-3] ^= 4
    (folder / "state.safetensors").write_bytes(bytes(data))


def change_a_digit(folder: Path) -> None:
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace('"scale": 3.1', '"scale": 3.2'))


DAMAGES = {
    "bit flip": flip_a_bit,
    "truncated": lambda f: (f / "state.safetensors").write_bytes((f / "state.safetensors").read_bytes()[:-9]),
    "empty": lambda f: (f / "state.safetensors").write_bytes(b""),
    "missing tensors": lambda f: (f / "state.safetensors").unlink(),
    "bad json": lambda f: (f / "state.json").write_text("{"),
    "json of another kind": lambda f: (f / "state.json").write_text("[1]"),
    "json without checksum": lambda f: (f / "state.json").write_text("{}"),
    "changed json": change_a_digit,
    "no utf-8": lambda f: (f / "state.json").write_bytes(b"\xff"),
    "missing json": lambda f: (f / "state.json").unlink(),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, damage, caplog):
    checkpoints = write(tmp_path, 1, 2, 3)
    DAMAGES[damage](tmp_path / "step_000000003")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest().step == 2
    assert "falling back to the checkpoint before it" in caplog.text
    assert "step_000000003" in caplog.text


def test_when_all_are_damaged_nothing_is_silently_started_anew(tmp_path, caplog):
    checkpoints = write(tmp_path, 1, 2)
    for folder in tmp_path.glob("step_*"):
        flip_a_bit(folder)
    with pytest.raises(FileError, match=r"of 2 checkpoints .* none can be used"):
        checkpoints.newest()


def test_a_full_disk_leaves_the_older_ones(tmp_path, monkeypatch):
    checkpoints = write(tmp_path, 1, 2, keep=1)

    def full(path: Path, tensors: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("monosema.training.checkpoint.write_tensors", full)
        with pytest.raises(FileError, match="No space left on device; free some space"):
            checkpoints.write(3, TENSORS, {})
    assert names(tmp_path) == ["latest", "step_000000002"]
    assert checkpoints.newest().step == 2
    checkpoints.write(3, TENSORS, {})
    assert checkpoints.newest().step == 3


def test_what_a_killed_process_left_is_removed(tmp_path):
    checkpoints = write(tmp_path, 1)
    (tmp_path / ".writing-99-step_000000002").mkdir()
    (tmp_path / ".writing-99-step_000000002" / "state.json").write_text(json.dumps({}))
    assert checkpoints.newest().step == 1
    assert names(tmp_path) == ["latest", "step_000000001"]


def test_a_step_written_again_replaces_the_old_one(tmp_path):
    checkpoints = write(tmp_path, 4)
    checkpoints.write(4, TENSORS, {"scale": 8})
    assert checkpoints.newest().plain == {"scale": 8}
    assert names(tmp_path) == ["latest", "step_000000004"]
