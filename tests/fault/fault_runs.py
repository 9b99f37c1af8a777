"""Asking the workshop for runs, and what runs leave behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class Workshop:
    """The process that forks runs."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self._alone: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        self.operations: dict[str, int] = {}

    def run(self, kind: str, out: Path, **request: Any) -> dict[str, Any]:
        """One run of ``kind`` in ``out``; how it ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kind": kind, "out": str(out), **request}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the workshop is gone"
        return dict(json.loads(answer))

    def finish(self, kind: str, out: Path) -> None:
        """A run to its end."""
        answer = self.run(kind, out)
        assert answer["status"] == 0, answer.get("traceback", answer)

    def alone(self, kind: str, folder: Path) -> Path:
        """The folder of an uninterrupted run."""
        if kind not in self._alone:
            out = folder / f"alone-{kind}"
            answer = self.run(kind, out)
            assert answer["status"] == 0, answer.get("traceback", answer)
            self._alone[kind] = out
            self.seconds[kind], self.operations[kind] = answer["seconds"], answer["operations"]
        return self._alone[kind]


def results(out: Path) -> dict[str, bytes]:
    """Everything that a run and its cache leave but seconds: weights, moments, thresholds, metrics, reports.

    Of checkpoints the newest: one that a killed process had no time to delete may stand beside it.
    """
    clocks = ("state.json", "summary.json", "summary.txt", "checksums.json", "run.json", ".lock")
    newest = {path.parent / path.read_text().strip() for path in out.rglob("latest")}
    others = [path for path in out.rglob("checkpoints/step_*") if path not in newest]
    return {
        path.relative_to(out).as_posix(): path.read_bytes().replace(str(out).encode(), b"")  # a config names its cache
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.endswith(clocks) and not any(other in path.parents for other in others)
    }
