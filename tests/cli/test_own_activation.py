"""A run with an activation of another package, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from squared_relu import SquaredReLU, registered

import monosema as ms
from monosema.cli.main import main


@pytest.fixture(autouse=True)
def _squared_relu() -> Iterator[None]:
    with registered():
        yield


def test_its_options_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--coder.activation", "squaredrelu", "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Gated,SquaredReLU}" in printed
    assert "--coder.activation.slope FLOAT" in printed and "What the square is multiplied by." in printed


def test_a_run_trains_resumes_and_is_evaluated(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    options = {
        "model.source": model_folder,
        "tokens.source": text_file,
        "tokens.context-size": 32,
        "tokens.heldout-fraction": 0.1,
        "stream.hook-names": "blocks.1.hook_resid_post",
        "stream.batch-size": 64,
        "coder.d-sae": 48,
        "coder.activation": "SquaredReLU",
        "coder.activation.slope": 0.5,
        "training.tokens": 1280,
    }
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    run = tmp_path / "run"
    assert main(["train", "--quiet", *words, "--out", str(run)]) == 0
    assert "SquaredReLU" in (run / "config.yaml").read_text()
    assert main(["train", "--quiet", "--config", str(run / "config.yaml"), "--out", str(run)]) == 0
    assert ms.load(run).config.activation == SquaredReLU(slope=0.5)
    assert main(["evaluate", "--quiet", str(run), "--out", str(tmp_path / "report.json")]) == 0
    first, again = (json.loads(file.read_text()) for file in (run / "report.json", tmp_path / "report.json"))
    assert again == first
