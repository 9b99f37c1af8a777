"""Checkpoints written beside the steps: the same files, the same step, errors that arrive, and what is kept."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema import hub
from monosema.core.errors import ConfigError, FileError
from monosema.data import ArrayRows
from monosema.runs import figure_log, keeper
from monosema.runs.describe import describe
from monosema.training import RunInterrupted

D, BATCH, STEPS = 8, 20, 12
ROWS = torch.randn(400, D, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    D, D, generator=torch.Generator().manual_seed(1)
)


def train(out: Path, activation: object = None, *, on_step=None, **options: object) -> ms.TrainingResult:
    config = ms.TrainingConfig(
        tokens=BATCH * STEPS, lr=0.01, log_every=1, **{"checkpoint_every": 2, "keep_checkpoints": 9, **options}
    )
    coder = ms.SAE(D, 16, activation=activation or ms.BatchTopK(k=3, threshold_rate=0.1))
    source = ArrayRows(ROWS, BATCH, validation_fraction=0.2)
    return ms.train(coder, source, config, out=out, progress=False, evaluation=False, on_step=on_step)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("checkpoints/**/*"))
        if path.is_file() and path.name != "state.json"  # it holds seconds
    }


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted((folder / "checkpoints").glob("step_*"))]


@pytest.mark.parametrize("scaling", ["expected_norm", "whitening"])
@pytest.mark.parametrize(
    "activation", [ms.BatchTopK(k=3, threshold_rate=0.1), ms.JumpReLU()], ids=["BatchTopK", "JumpReLU"]
)
def test_background_and_foreground_write_the_same_bytes(tmp_path, activation, scaling):
    for background in (True, False):
        train(tmp_path / str(background), activation, background_checkpoints=background, input_scaling=scaling)
    found = files(tmp_path / "True")
    assert found == files(tmp_path / "False")
    assert len(found) == 6 * 4 + 1  # state, two of weights and cfg.json of each, and latest


def test_a_checkpoint_is_of_its_step_however_late_it_is_written(tmp_path, monkeypatch):
    """The writer is held until the run has gone on; what it writes is still the state of the step."""
    train(tmp_path / "prompt", background_checkpoints=False, checkpoint_every=5)
    release, write = threading.Event(), keeper.Keeper._write

    def late(self, step, *rest):
        if step == 5:
            assert release.wait(30)
        write(self, step, *rest)

    monkeypatch.setattr(keeper.Keeper, "_write", late)
    train(tmp_path / "late", checkpoint_every=5, on_step=lambda t: release.set() if t.step_number == 9 else None)
    assert files(tmp_path / "late") == files(tmp_path / "prompt")


def test_the_snapshot_uses_its_memory_again(tmp_path, monkeypatch):
    places = []
    take = keeper.Snapshot.take

    def watched(self, tensors):
        take(self, tensors)
        places.append({name: tensor.data_ptr() for name, tensor in self.tensors.items()})

    monkeypatch.setattr(keeper.Snapshot, "take", watched)
    train(tmp_path / "run")
    assert len(places) == 7  # room at the first step, then six checkpoints
    assert all(place == places[0] for place in places)


@pytest.mark.parametrize("at", [4, STEPS])
def test_an_error_of_the_writer_reaches_the_caller_and_older_ones_stand(tmp_path, monkeypatch, at):
    monkeypatch.setattr(keeper.hub, "save", failing_at(at // 2, hub.save))
    with pytest.raises(FileError, match="No space left on device; free some space"):
        train(tmp_path / "run")
    assert steps(tmp_path / "run") == list(range(2, at, 2))
    monkeypatch.undo()
    result = train(tmp_path / "run")
    assert result.resumed_from == at - 2
    train(tmp_path / "whole")
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def failing_at(call, function):
    calls = []

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments, **options)

    return fail


def test_a_stop_waits_for_the_writer_and_says_what_went_wrong(tmp_path, monkeypatch):
    with pytest.raises(RunInterrupted):
        train(tmp_path / "run", max_hours=1e-12)
    assert steps(tmp_path / "run") == [1]
    monkeypatch.setattr(keeper.hub, "save", failing_at(1, hub.save))
    with pytest.raises(FileError, match="No space left"):
        train(tmp_path / "run", max_hours=1e-12)
    assert steps(tmp_path / "run") == [1]


def test_an_error_of_the_callers_own_comes_first_and_the_checkpoint_is_whole(tmp_path):
    def crash(trainer):
        if trainer.step_number == 7:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path / "run", on_step=crash)
    assert train(tmp_path / "run").resumed_from == 6


def test_checkpoints_are_found_by_tokens_step_and_name(tmp_path):
    run = tmp_path / "run"
    train(
        run, keep_checkpoints=1, checkpoint_every=3, checkpoint_tokens=(30, 100), eval_every=4, keep_best="heldout/fve"
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["heldout/fve"] for line in lines if "heldout/fve" in line}
    best = max(measured, key=measured.__getitem__)
    assert set(steps(run)) == {2, 5, 12, best}
    for name, step in (("tokens_40", 2), ("tokens_000000100", 5), ("step_12", 12), ("latest", 12), ("best", best)):
        expected = ms.load(run / "checkpoints" / f"step_{step:09d}")
        assert torch.equal(ms.load(run, name).W_enc, expected.W_enc), name
    with pytest.raises(FileError, match=r"no checkpoint tokens_41; there are tokens_40 \(step_000000002\), "):
        ms.load(run, "tokens_41")
    with pytest.raises(FileError, match="no dictionary under 'nothing'"):
        ms.load(run, "nothing")
    assert "step_000000002 (40 tokens)" in describe(run)
    assert "step_000000012 (240 tokens, latest" in describe(run)


def test_the_best_checkpoint_stays_and_survives_a_stop(tmp_path, monkeypatch):
    figures = {2: 0.1, 4: 0.9, 6: 0.3, 8: 0.8, 10: 0.95, 12: 0.2}
    monkeypatch.setattr(figure_log, "measure", lambda *arguments, **options: object())
    clock: list[int] = []
    monkeypatch.setattr(figure_log, "heldout_figures", lambda report: {"heldout/fve": figures[clock[-1]]})
    options = {"checkpoint_every": 5, "keep_checkpoints": 1, "eval_every": 2, "keep_best": "heldout/fve"}

    def step(trainer):
        clock.append(trainer.step_number + 1)
        if trainer.step_number == stop_at:
            raise RuntimeError("stop")  # the checkpoint of step 5 is waited for, as a second Ctrl-C would not

    clock.append(1)
    stop_at = 9
    with pytest.raises(RuntimeError, match="stop"):
        train(tmp_path / "run", on_step=step, **options)
    assert (tmp_path / "run" / "checkpoints" / "best").read_text().strip() == "step_000000004"
    assert steps(tmp_path / "run") == [4, 5]
    stop_at, clock[:] = -1, [6]
    (tmp_path / "run" / "checkpoints" / "best").unlink()
    assert train(tmp_path / "run", on_step=step, **options).resumed_from == 5
    assert (tmp_path / "run" / "checkpoints" / "best").read_text().strip() == "step_000000010"
    assert steps(tmp_path / "run") == [10, 12]


def test_a_second_ctrl_c_waits_for_no_checkpoint(tmp_path, monkeypatch):
    """The writer is held: what it has not written is not there, and the next call begins at what is."""
    release, done, write = threading.Event(), threading.Event(), keeper.Keeper._write

    def held(self, step, *rest):
        if step == 4:
            assert release.wait(30)
        write(self, step, *rest)
        done.set()

    def step(trainer):
        if trainer.step_number == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(keeper.Keeper, "_write", held)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", on_step=step)
        assert steps(tmp_path / "run") == [2]
        done.clear()
        release.set()
        assert done.wait(30)
    assert train(tmp_path / "run").resumed_from == 4


def test_a_figure_that_the_source_does_not_give_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep_best='heldout/kl' is not measured on this source; it has heldout/fve"):
        train(tmp_path / "run", eval_every=2, keep_best="heldout/kl")
