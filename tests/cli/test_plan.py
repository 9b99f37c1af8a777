"""``monosema plan``."""

import json
from pathlib import Path

import pytest

from monosema.cli.main import main
from monosema.runs import needs as needing

OPTIONS = [
    "--stream.hook-names", "blocks.1.hook_resid_post", "--stream.batch-size", "64", "--coder.d-sae", "640",
    "--coder.activation", "TopK", "--coder.activation.k", "4", "--training.tokens", "6400",
    "--tokens.context-size", "32", "--quiet",
]  # fmt: skip


@pytest.fixture
def options(model_folder: Path, text_file: Path) -> list[str]:
    return ["plan", "--model.source", str(model_folder), "--tokens.source", str(text_file), *OPTIONS]


def test_the_command_prints_a_plan(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--seconds", "0"]) == 0
    said = capsys.readouterr().out
    assert "100 steps, 6,400 tokens" in said and "memory (cpu)" in said and "steps/s" not in said


def test_the_plan_as_json_with_a_cache_and_times(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--seconds", "0.05", "--json", "--cache-type"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["needs"]["disk"]["cache"] > 0 and plan["times"]["total"] > 0


def test_what_does_not_fit_is_status_2(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needing, "free_disk", lambda path: 10)
    assert main([*options, "--seconds", "1"]) == 2
    said = capsys.readouterr()
    assert "do not fit on the disk" in said.err and "parameters" in said.out


def test_too_little_text_is_status_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--seconds", "0", "--training.tokens", "90000000"]) == 2
    assert "the run wants 90,000,000 training tokens" in capsys.readouterr().err


def test_a_runs_own_config_is_planned(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*options, "--print-config"])
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert main(["plan", "--config", str(tmp_path / "config.yaml"), "--seconds", "0", "--quiet"]) == 0
    assert "100 steps" in capsys.readouterr().out
