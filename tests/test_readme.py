"""The README is followed from top to bottom in one folder: its Python and its shell, in their order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

LEFT_OUT = {
    "make demo": "makes an environment from the network, and make check would run this test again",
    "pip install": "needs the network",
}
"""Blocks that are not run, by how they begin, and why."""


def blocks() -> list[tuple[str, str]]:
    """Each block of the README that is meant to be run: its language and its text."""
    return re.findall(r"```(python|sh)\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def left_out(text: str) -> list[str]:
    return [start for start in LEFT_OUT if text.startswith(start)]


def script() -> str:
    """All blocks as one Python program, so that later Python sees the names of what came before."""
    parts = ["import subprocess"]
    for language, text in blocks():
        if left_out(text):
            continue
        if language == "sh":
            text = (
                f"print({text!r}, flush=True)\nsubprocess.run(['bash', '-euo', 'pipefail', '-c', {text!r}], check=True)"
            )
        parts.append(text)
    return "\n".join(parts)


def test_blocks_that_are_left_out_are_in_the_readme() -> None:
    assert sorted(start for _, text in blocks() for start in left_out(text)) == sorted(LEFT_OUT)
    assert [language for language, text in blocks() if not left_out(text)] == ["python", "sh", "sh", "python"]


@pytest.mark.slow
def test_readme_can_be_followed(tmp_path: Path) -> None:
    (tmp_path / "readme.py").write_text(script(), encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        [sys.executable, "readme.py"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    assert "ce_loss_score" in result.stdout
    assert "examples:clt" in result.stdout
    runs = tmp_path / "runs"
    for run in ("first", "second", "clt", "sweep/k16", "sweep/k64"):
        assert (runs / run / "coder" / "cfg.json").exists(), run
        assert (runs / run / "report.json").exists(), run
    for run in ("first", "second"):
        assert (runs / run / "features.html").exists(), run
    assert (runs / "features" / "features.json").exists()
