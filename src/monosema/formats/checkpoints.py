"""Run folders: whether a folder is one or holds several, a run's checkpoints by name, how far it has come; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosema.core.config import load_plain
from monosema.core.errors import FileError, UserError
from monosema.core.files import read_json
from monosema.core.plain import mapping_in, whole_in
from monosema.core.words import counted


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run has come, by its newest checkpoint."""

    step: int
    """Steps done."""
    n_tokens: int | None
    """Tokens trained on; None where the checkpoint does not say."""
    n_tokens_wanted: int | None
    """Tokens of the whole run, fine-tuning included; None where its config does not say."""

    def __str__(self) -> str:
        step = f"step {self.step:,}"
        if self.n_tokens is None:
            return step
        if not self.n_tokens_wanted:
            return f"{step}, {counted(self.n_tokens, 'token')}"
        share = self.n_tokens / self.n_tokens_wanted
        return f"{step}, {self.n_tokens:,} of {counted(self.n_tokens_wanted, 'token')} ({share:.0%})"


def run_progress(run: Path) -> RunProgress | None:
    """How far the run in the folder ``run`` has come; None where it has no checkpoint."""
    steps = {step: path for path in checkpoint_folders(run) if (step := _step(path)) is not None}
    if not steps:
        return None
    newest = max(steps)
    try:
        n_tokens: int | None = checkpoint_tokens(steps[newest])
    except FileError:
        n_tokens = None
    return RunProgress(step=newest, n_tokens=n_tokens, n_tokens_wanted=tokens_wanted(run))


def tokens_wanted(run: Path) -> int | None:
    """The tokens that the run in the folder ``run`` is to be trained on; None where its config does not say."""
    try:
        training: Any = load_plain(run / "config.yaml").get("training")
    except UserError:
        return None
    finetuning = training.get("finetuning") if isinstance(training, Mapping) else None
    counts = [part["tokens"] for part in (training, finetuning) if isinstance(part, Mapping) and "tokens" in part]
    return sum(counts) if counts and all(type(count) is int and count >= 0 for count in counts) else None


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is that of a run, finished or not."""
    return (folder / "config.yaml").is_file() and (folder / "run.json").is_file()


def runs_in(folder: Path) -> list[Path]:
    """The runs in the folder of a sweep, by name; none where ``folder`` is no sweep."""
    if not folder.is_dir() or is_run(folder):
        return []
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and is_run(each)]


def is_finished(run: Path) -> bool:
    """Whether the run in the folder ``run`` has its dictionary."""
    return (run / "coder").exists()


def unfinished_names(run: Path) -> list[str]:
    """The checkpoints by which a run without a finished dictionary can be loaded; none where it is no such run."""
    folder = run / "checkpoints"
    if (run / "coder").exists() or not folder.is_dir():
        return []
    pointers = [name for name in ("latest", "best") if (folder / name).is_file()]
    return [*pointers, *(path.name for path in checkpoint_folders(run))]


def named_checkpoint(run: Path, name: str) -> Path | None:
    """The checkpoint that ``name`` means: ``latest``, ``best``, ``step_500`` or ``tokens_1024000``; None for others.

    Raises ``FileError`` listing what there is, where a number of tokens or steps is none of it.
    """
    folder = run / "checkpoints"
    pointer = folder / name
    if name in ("latest", "best") and pointer.is_file():
        return folder / pointer.read_text(encoding="utf-8", errors="replace").strip()
    kind, _, number = name.partition("_")
    if kind not in ("step", "tokens") or not number.isdecimal() or not folder.is_dir():
        return None
    found = {path: checkpoint_tokens(path) for path in checkpoint_folders(run)}
    for path, n_tokens in found.items():
        if int(number) == (n_tokens if kind == "tokens" else _step(path)):
            return path
    there = ", ".join(f"tokens_{n_tokens} ({path.name})" for path, n_tokens in found.items())
    raise FileError(f"{folder} has no checkpoint {name}; there are {there or 'none'}")


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of ``run``, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def checkpoint_tokens(checkpoint: Path) -> int:
    """The tokens that the dictionary in ``checkpoint`` was trained on; ``FileError`` where it does not say."""
    where = checkpoint / "state.json"
    n_tokens = whole_in(mapping_in({"the checkpoint": read_json(where)}, "the checkpoint", where), "tokens", where)
    if n_tokens is None:
        raise FileError(f"{where} does not say how many tokens the run had seen")
    return n_tokens


def _step(checkpoint: Path) -> int | None:
    number = checkpoint.name.removeprefix("step_")
    return int(number) if number.isdecimal() and len(number) < 20 else None
