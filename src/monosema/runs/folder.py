"""A run's folder: config, metrics, checkpoints, the finished dictionary and its report.

``config.yaml`` (what is computed; re-runnable), ``run.json`` (what it ran on), ``metrics.jsonl``, ``checkpoints/``,
``coder/`` (the deliverable), ``report.json``, ``summary.json`` and ``summary.txt``. One process at a time: ``.lock`` is
held while it writes.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from monosema.core.config import differences, load_plain
from monosema.core.errors import ConfigError, FileError
from monosema.core.files import cannot_write, read_json, read_text, remove_leftovers, write_atomically, write_json
from monosema.runs.config import HARMLESS
from monosema.training import Checkpoints

logger = logging.getLogger("monosema.runs.folder")


class RunFolder:
    """The folder of one run, locked while this object is open (a context manager)."""

    def __init__(
        self, path: str | os.PathLike[str], config: Mapping[str, Any], keep_checkpoints: int, keep_every: int = 0
    ):
        self.path = Path(path)
        self.config = config
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep_checkpoints, keep_every)
        self._lock = FileLock(self.path / ".lock", blocking=False)

    @property
    def coder_path(self) -> Path:
        return self.path / "coder"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        return self.path / "report.json"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    def __enter__(self) -> RunFolder:
        """Lock the folder and hold its config against ours; nothing is left behind where they differ.

        Raises ``ConfigError`` listing the differences, ``FileError`` where another process holds the folder or it
        cannot be written.
        """
        self.refuse_others()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise FileError(
                f"another process is writing to {self.path}; wait for it, or choose another out="
            ) from error
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            self._check_or_write_config()
            remove_leftovers(self.path)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def refuse_others(self) -> None:
        """Raise ``ConfigError`` where the folder holds another run, or none but other things; only reads."""
        file = self.path / "config.yaml"
        if file.exists():
            lines = [line for line in differences(load_plain(file), self.config) if line.split(":")[0] not in HARMLESS]
            if lines:
                raise ConfigError(
                    f"{self.path} belongs to another run (old -> new):\n  "
                    + "\n  ".join(lines)
                    + "\nnothing was changed; choose another out=, or use the old values to resume"
                )
            return
        strangers = [path.name for path in self.path.iterdir() if path.name != ".lock"] if self.path.is_dir() else []
        if strangers:
            raise ConfigError(
                f"{self.path} is not empty and holds no run (found {', '.join(sorted(strangers)[:5])}); "
                "choose another out="
            )

    def _check_or_write_config(self) -> None:
        file = self.path / "config.yaml"
        self.refuse_others()  # again, now that no other process can write
        if file.exists():
            self._compare_environment()
            return
        write_json(self.path / "run.json", environment())
        write_atomically(file, yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True))

    def _compare_environment(self) -> None:
        file = self.path / "run.json"
        if not file.exists():
            return
        recorded = read_json(file)
        if not isinstance(recorded, dict):
            raise FileError(f"{file} is damaged: it holds no mapping; delete it to go on")
        changed = differences(recorded, environment())
        if changed:
            logger.warning(
                "the run goes on, but not bit for bit, because what it runs on has changed: %s", "; ".join(changed)
            )

    def failure(self) -> str | None:
        """Why an earlier call gave this run up; None where it did not."""
        file = self.path / "failure.json"
        if not file.exists():
            return None
        logger.warning(
            "%s stopped in an earlier call and is left as it is; delete %s to try again", self.path, file.name
        )
        failure = read_json(file)
        return str(failure.get("error") if isinstance(failure, dict) else failure)

    def record_failure(self, error: str) -> None:
        """Write down why this run was given up."""
        write_json(self.path / "failure.json", {"error": error})

    def metrics(self) -> list[dict[str, Any]]:
        """The logged lines; what is none, as a last line cut short by a killed process, is passed over."""
        if not self.metrics_path.exists():
            return []
        lines = []
        for text in read_text(self.metrics_path).split("\n"):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and type(line.get("step")) is int:
                lines.append(line)
        return lines

    def cut_metrics(self, step: int) -> None:
        """Drop lines after ``step``: the resumed run writes them again."""
        kept = [json.dumps(line) for line in self.metrics() if line["step"] <= step]
        write_atomically(self.metrics_path, "".join(line + "\n" for line in kept))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        try:
            with open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self.metrics_path, error) from error


def environment() -> dict[str, Any]:
    """What bits depend on: versions, processor kind, threads."""
    return {
        "monosema": version("monosema"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
