"""How far a run has come, by its checkpoints and its config."""

import json
from pathlib import Path

import pytest

from monosema import hub
from monosema.core.errors import FileError
from monosema.formats.checkpoints import RunProgress, run_progress, tokens_wanted


def make_run(folder: Path, steps: dict[int, object], training: str = "tokens: 2000") -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"training: {{{training}}}")
    (folder / "run.json").write_text("{}")
    for step, tokens in steps.items():
        home = folder / "checkpoints" / f"step_{step:09d}"
        home.mkdir()
        (home / "state.json").write_text(json.dumps({"tokens": tokens}))
    return folder


def test_the_newest_checkpoint_says_how_far_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {5: 500, 15: 1500})
    assert run_progress(run) == RunProgress(step=15, n_tokens=1500, n_tokens_wanted=2000)
    assert str(run_progress(run)) == "step 15, 1,500 of 2,000 tokens (75%)"


@pytest.mark.parametrize(
    ("training", "wanted"),
    [
        ("tokens: 2000, finetuning: {tokens: 500}", 2500),
        ("tokens: many", None),
        ("seed: 1", None),
        ("tokens: -5", None),
    ],
)
def test_tokens_of_the_whole_run(tmp_path: Path, training: str, wanted: int | None) -> None:
    assert tokens_wanted(make_run(tmp_path / "run", {}, training)) == wanted


def test_what_is_damaged_is_left_out(tmp_path: Path) -> None:
    assert str(run_progress(make_run(tmp_path / "a", {15: "x"}))) == "step 15"
    assert str(run_progress(make_run(tmp_path / "b", {15: 30}, "tokens: [1]"))) == "step 15, 30 tokens"
    assert run_progress(make_run(tmp_path / "c", {})) is None


def test_loading_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "several" / "run", {15: 1500})
    message = r"step 15, 1,500 of 2,000 tokens \(75%\).* give one of its checkpoints by name.* resumes it"
    for arguments in ((run,), (run.parent, "run")):
        with pytest.raises(FileError, match=message):
            hub.load(*arguments)
    with pytest.raises(FileError, match="no checkpoint yet of the 2,000 tokens it is to be trained on"):
        hub.load(make_run(tmp_path / "fresh", {}))
