"""A run's folder: config, metrics, checkpoints, the finished dictionary and its report.

``config.yaml`` (what is computed; re-runnable), ``run.json`` (what it ran on), ``metrics.jsonl``, ``checkpoints/``,
``coder/`` (the deliverable), ``report.json``, ``summary.json`` and ``summary.txt``; ``checksums.json`` (what the files
that are written once should hold). One process at a time: ``.lock`` is held while it writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from monosema.core.config import differences, dump_yaml, load_plain
from monosema.core.devices import processor
from monosema.core.errors import ConfigError, FileError
from monosema.core.files import (
    cannot_write,
    is_leftover,
    read_json,
    remove_leftovers,
    write_atomically,
    write_json,
)
from monosema.core.logs import get_logger
from monosema.core.plain import dump_json, parse_json
from monosema.runs.checksums import Checksums
from monosema.runs.config import HARMLESS
from monosema.runs.held_config import CONFIG
from monosema.tracking import JsonLines
from monosema.training import Checkpoint, CheckpointPlan, Checkpoints

logger = get_logger("monosema.runs.folder")

_CONSENT_AGAIN = (
    ". The run was started with consent to the model's own code, and its folder cannot consent again: give "
    "--model.trust-remote-code, or load_model(..., trust_remote_code=True)"
)
ENVIRONMENT, LOST_METRICS = "run.json", "metrics.lost.jsonl"
_KERNEL_SETTINGS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")
"""Environment variables with which MKL and oneDNN take other kernels."""


class RunFolder:
    """The folder of one run, locked while this object is open (a context manager)."""

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], plan: CheckpointPlan):
        self.path = Path(path)
        self.config = config
        self.checkpoints = Checkpoints(self.path / "checkpoints", plan)
        self.checksums = Checksums(self.path)
        self._config_text = dump_yaml(dict(config))
        self._environment_text = dump_json(environment(), indent=2) + "\n"
        self.metrics_log = JsonLines(self.path / "metrics.jsonl")
        """What ``metrics.jsonl`` is written through: a subscriber of the run's sink."""
        self._lock = FileLock(self.path / ".lock", blocking=False)

    @property
    def coder_path(self) -> Path:
        return self.path / "coder"

    @property
    def metrics_path(self) -> Path:
        return self.metrics_log.path

    @property
    def report_path(self) -> Path:
        return self.path / "report.json"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    def summary(self) -> Any:
        """What ``summary.json`` holds; None where it cannot be read."""
        try:
            return read_json(self.summary_path)
        except FileError:
            return None

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
            self.refuse_others()  # again, now that no other process can write
            self._begin()
            remove_leftovers(self.path)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def refuse_others(self) -> None:
        """Raise ``ConfigError`` where the folder holds another run, or none but other things; only reads."""
        if self._is_ours():
            return
        if not self._config_file.exists() or self.checksums.damaged(CONFIG):
            raise FileError(
                f"{self._config_file} is damaged or lost, and the options of this call are not just those that it "
                "held; put back a whole copy, or call with the very same options, those of logging and checkpoints too"
            )
        try:
            held = load_plain(self._config_file)
        except ConfigError as error:
            raise FileError(f"{self._config_file} is damaged ({error}); put back a whole copy") from error
        lines = [line for line in differences(held, self.config) if not _is_harmless(line)]
        if lines:
            weights = any(_is_fingerprint(line.split(":")[0]) for line in lines)
            raise ConfigError(
                f"{self.path} belongs to another run (old -> new):\n  "
                + "\n  ".join(lines)
                + "\nnothing was changed; choose another out=, or use the old values to resume"
                + (_CONSENT_AGAIN if any("trust_remote_code: True" in line for line in lines) else "")
                + ("; a model's fingerprint is that of its weights: put back those the run began with" * weights)
            )

    def _is_ours(self) -> bool:
        """Whether nothing is here yet, or what was begun with just these options; ``ConfigError`` for other things."""
        if self.checksums.is_readable and self.checksums.matches(CONFIG, self._config_text):
            return True
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        there = {name for name in names if name != ".lock" and not is_leftover(name)}
        if not there or (there <= {"checksums.json", ENVIRONMENT} and self.checksums.is_readable):
            return True  # a process was killed before config.yaml, which makes it a run
        if CONFIG not in there and not self.checksums.is_recorded(CONFIG):
            raise ConfigError(
                f"{self.path} is not empty and holds no run (found {', '.join(sorted(there)[:5])}); choose another out="
            )
        return False

    @property
    def _config_file(self) -> Path:
        return self.path / CONFIG

    def _begin(self) -> None:
        """Make a fresh folder a run's; of one that is, mend what can be told from this call, and say so."""
        own = {CONFIG: self._config_text, ENVIRONMENT: self._environment_text}
        is_fresh = not self._config_file.exists() and not (self.path / "checkpoints").exists()
        if is_fresh:
            self.checksums.record(own)
            write_atomically(self.path / ENVIRONMENT, self._environment_text)
            write_atomically(self._config_file, self._config_text)
            return
        if not self.checksums.is_readable:
            logger.warning("%s/checksums.json is damaged or lost; what it vouched for is written again", self.path)
            self.checksums.record_written(*(name for name in own if (self.path / name).exists()))
        for name, text in own.items():
            damage = self.checksums.damaged(name)
            if damage and self.checksums.matches(name, text):
                logger.warning("%s; this call has the same, it is written again", damage[0])
                write_atomically(self.path / name, text)
        self._compare_environment()

    def _compare_environment(self) -> None:
        file = self.path / ENVIRONMENT
        try:
            if self.checksums.damaged(ENVIRONMENT):
                raise FileError(f"{file} is damaged or lost")
            recorded = read_json(file)
            if not isinstance(recorded, dict):
                raise FileError(f"{file} is damaged: it holds no mapping")
            changed = differences(recorded, environment())
        except FileError as error:
            changed = [str(error)]
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

    # -- what is written at the end

    def has_whole(self, name: str) -> bool:
        """Whether the file or folder was written to its end and is as it was; says so where it is not."""
        damage = self.checksums.damaged(name)
        for line in damage:
            logger.warning("%s; it is written again", line)
        return self.checksums.is_recorded(name) and not damage

    @contextlib.contextmanager
    def writing(self, *names: str) -> Iterator[None]:
        """Around the writing of files and folders; killed inside, they do not count as there."""
        self.checksums.forget(*names)
        yield
        self.checksums.record_written(*(name for name in names if (self.path / name).exists()))

    # -- metrics

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint whose lines of metrics are whole, too."""
        return self.checkpoints.newest(self._check_metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """The logged lines; a last line cut short by a killed process is passed over."""
        lines = []
        for text in self.metrics_log.content().decode("utf-8", errors="replace").split("\n"):
            try:
                line = parse_json(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and type(line.get("step")) is int:
                lines.append(line)
        return lines

    def cut_metrics(self, checkpoint: Checkpoint | None) -> None:
        """Drop what was logged after ``checkpoint``: the resumed run writes it again."""
        whole = self.metrics_log.content()
        kept = b"" if checkpoint is None else whole[: _logged(checkpoint)[0]]
        if checkpoint is not None and self._gave_metrics_up:
            kept = b"".join(
                dump_json(line).encode() + b"\n" for line in self.metrics() if line["step"] <= checkpoint.step
            )
        self.metrics_log.keep(kept)

    @property
    def _gave_metrics_up(self) -> bool:
        return (self.path / LOST_METRICS).exists()

    def _check_metrics(self, checkpoint: Checkpoint) -> None:
        n_bytes, sha256 = _logged(checkpoint)
        lines = self.metrics_log.content()[:n_bytes]
        if self._gave_metrics_up or hashlib.sha256(lines).hexdigest() == sha256:
            return
        raise FileError(
            f"{self.metrics_path} is damaged: what was logged up to step {checkpoint.step} is not there as it was "
            f"written; put back a whole copy or, to go on without those lines, rename it to {LOST_METRICS}"
        )


def _is_harmless(difference: str) -> bool:
    """Whether a line of ``differences`` is no reason to refuse to resume.

    A run may record no fingerprint of the weights: it is of an older version, or they were not all in memory.
    """
    name, _, change = difference.partition(":")
    is_unknown = change.startswith(" None -> ") or change.endswith(" -> None")
    return name in HARMLESS or (is_unknown and _is_fingerprint(name))


def _is_fingerprint(name: str) -> bool:
    """Whether an option is the fingerprint of a model's weights."""
    return name.endswith(".fingerprint") and name.partition(".")[0] in ("model", "models", "other_models")


def _logged(checkpoint: Checkpoint) -> tuple[int, str]:
    """How many bytes were logged before ``checkpoint``, and their checksum."""
    match checkpoint.plain.get("metrics"):
        case {"n_bytes": int(n_bytes), "sha256": str(sha256)} if n_bytes >= 0:
            return n_bytes, sha256
    raise FileError(f"checkpoint {checkpoint.path.name} is damaged: it does not say what was logged before it")


def environment() -> dict[str, Any]:
    """What bits depend on: versions, processor, threads, and settings that choose between a processor's kernels."""
    return {
        "monosema": version("monosema"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel_settings": {name: os.environ[name] for name in _KERNEL_SETTINGS if name in os.environ},
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
