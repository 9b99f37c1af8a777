"""Every file of a run, damaged in every way: it is named, and what goes on is an older good state, or nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema.core.errors import UserError
from monosema.data import ArrayRows
from monosema.runs import folder
from monosema.runs.describe import describe

D, BATCH, STEPS = 8, 20, 12
ROWS = torch.randn(400, D, generator=torch.Generator().manual_seed(0))
KINDS = ("truncated", "bit flipped", "deleted", "replaced")
NEWEST = "checkpoints/step_000000012"
STATE = ("state.json", "state.safetensors", "coder/cfg.json", "coder/sae_weights.safetensors")
CHECKPOINT = tuple(f"{NEWEST}/{name}" for name in (*STATE, "coder/sparsity.safetensors"))
RUN = ("config.yaml", "run.json", "metrics.jsonl", "report.json", "checksums.json", "checkpoints/latest")
CODER = ("coder/cfg.json", "coder/sae_weights.safetensors", "coder/sparsity.safetensors")
REFUSED = [("metrics.jsonl", kind) for kind in ("deleted", "replaced")]
"""What no other file can stand in for; the run is refused until it is put back or given up."""


def train(out: Path) -> ms.TrainingResult:
    config = ms.TrainingConfig(tokens=BATCH * STEPS, lr=0.01, log_every=1, checkpoint_every=4, keep_checkpoints=3)
    coder = ms.SAE(D, 16, activation=ms.BatchTopK(k=3))
    return ms.train(coder, ArrayRows(ROWS, BATCH, validation_fraction=0.2), config, out=out, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    return tmp_path / "run"


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
        return
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "bit flipped":
        content[len(content) * 2 // 3] ^= 1
    else:
        content = bytearray(os.urandom(len(content)))
    path.write_bytes(content)


def results(folder: Path) -> dict[str, bytes]:
    """What a run comes to; ``checksums.json`` and ``state.json`` hold no figure."""
    names = [*CODER, "metrics.jsonl", "report.json", "config.yaml", "run.json", f"{NEWEST}/state.safetensors"]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*CHECKPOINT, *RUN, *CODER])
def test_a_damaged_file_is_named_and_never_trusted(
    run: Path, finished: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run / name, kind)
    refusal = ""
    with caplog.at_level(logging.WARNING), contextlib.suppress(UserError):
        try:
            result = train(run)
        except UserError as error:
            refusal = str(error)
            raise
        expected = {8} if name in CHECKPOINT else {4, 8} if name == "metrics.jsonl" else {STEPS}
        assert result.resumed_from in expected
    if (name, kind) in REFUSED:
        assert "put back a whole copy" in refusal
    else:
        assert refusal == ""
        assert results(run) == results(finished)
        if kind == "bit flipped":
            train(run)  # and nothing is wrong any more
        assert "damaged" not in describe(run)
    message = f"{caplog.text} {refusal}"
    assert Path(name).name in message
    assert name not in CHECKPOINT or "step_000000012 is damaged" in message


def test_lines_damaged_late_are_made_again_from_an_older_checkpoint(run: Path, finished: Path) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]))
    assert train(run).resumed_from == 8
    assert results(run) == results(finished)


def test_metrics_that_are_given_up_do_not_hold_the_run_up(run: Path, finished: Path) -> None:
    damage(run / "metrics.jsonl", "bit flipped")
    (run / "metrics.jsonl").rename(run / "metrics.lost.jsonl")
    shutil.rmtree(run / NEWEST)
    assert train(run).resumed_from == 8
    assert (run / "coder" / "cfg.json").read_bytes() == (finished / "coder" / "cfg.json").read_bytes()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_newest_checkpoint_that_is_gone_is_missed(
    run: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(run / NEWEST)
    assert train(run).resumed_from == 8
    assert "latest names step_000000012, which is not here; going on from step_000000008" in caplog.text
    assert results(run) == results(finished)


def test_a_run_whose_checkpoints_are_all_gone_is_not_started_anew_in_silence(run: Path) -> None:
    for path in (run / "checkpoints").glob("step_*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="put them back, or start in a new folder"):
        train(run)


def test_a_config_that_this_call_cannot_vouch_for_is_refused(run: Path) -> None:
    (run / "config.yaml").unlink()
    other = ms.TrainingConfig(tokens=BATCH * STEPS, lr=0.01, log_every=2, checkpoint_every=4)
    with pytest.raises(UserError, match=r"config.yaml is damaged or lost, .* put back a whole copy"):
        ms.train(ms.SAE(D, 16, activation=ms.BatchTopK(k=3)), ArrayRows(ROWS, BATCH), other, out=run)


def test_inspect_names_what_is_damaged(run: Path) -> None:
    assert "damaged" not in describe(run)
    damage(run / "run.json", "bit flipped")
    assert "run.json is not what was written" in describe(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda patch: patch.setattr(folder, "processor", lambda: "another"), "processor: .* -> 'another'"),
        (lambda patch: patch.setenv("MKL_CBWR", "SSE2"), "kernel_settings.MKL_CBWR"),
        (lambda patch: None, None),
    ],
)
def test_a_run_that_goes_on_elsewhere_says_that_its_bits_differ(run, monkeypatch, caplog, change, message):
    change(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="monosema.runs"):
        train(run)
    said = [record.getMessage() for record in caplog.records if "not bit for bit" in record.getMessage()]
    assert len(said) == (message is not None)
    assert message is None or re.search(message, said[0])
