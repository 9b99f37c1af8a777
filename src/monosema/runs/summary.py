"""What a run came to, in one row: written into its folder and shown when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monosema.core.facts import Facts, shown_as_facts
from monosema.core.memory import readable_bytes
from monosema.core.printable import terminal_line, terminal_lines
from monosema.core.progress import short_number
from monosema.core.words import counted
from monosema.evaluation import Report
from monosema.metrics.figures import FIGURES
from monosema.runs.clock import Usage
from monosema.runs.divergence import explains_nothing
from monosema.training import Trainer
from monosema.training.memory import StepMemory


@shown_as_facts
@dataclass(frozen=True, kw_only=True, repr=False)
class RunSummary:
    """The figures of one finished run; None where something was not measured."""

    name: str
    """The coder's name among several, else the run folder's."""
    tokens: int
    """Tokens trained on."""
    seconds: float | None
    """Wall time of ``train`` over all calls, with the first activations and the evaluation at the end, without loading
    model and text before. Several coders on one pass share the time of the pass."""
    times: dict[str, float] | None
    """Its parts, which add up to it: ``collecting`` (waiting for activations), ``steps``, ``evaluation``, ``saving``
    (checkpoints, dictionary and report) and ``other``."""
    tokens_per_second: float | None
    """``tokens / (collecting + steps)``."""
    peak_memory_bytes: int | None
    """Memory in use at its peak, model, rows and whatever else the process did included: of a GPU what torch has
    allocated there, else what the process has had resident."""
    d_sae: int
    """Latents."""
    n_alive: int
    """Latents that have fired within the newest ``dead_after_tokens`` of training."""
    n_dead: int
    """The others."""
    training: dict[str, Any]
    """The last logged figures of training; see ``docs/metrics.md``."""
    report: dict[str, Any] | None
    """The report on held-out text or rows."""
    folder: str | None
    """The run folder."""
    error: str | None
    """Why the run stopped early."""
    warning: str | None = None
    """What is wrong with the dictionary: it explains less than nothing, and the likely cause."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values: what ``summary.json`` holds."""
        return asdict(self)

    @property
    def facts(self) -> dict[str, str | None]:
        """In words; None for what was not measured."""

        def words(heading: str, figures: Mapping[str, Any], names: Sequence[str]) -> dict[str, str | None]:
            labels = {name: FIGURES[name].label if name in FIGURES else name for name in names}
            known = {labels[name]: figures[name] for name in names if figures.get(name) is not None}
            return {heading: ", ".join(f"{label} {value:.4g}" for label, value in known.items()) or None}

        trained = f" in {duration(self.seconds)}" if self.seconds is not None else ""
        return {
            "trained on": f"{counted(self.tokens, 'token')}{trained}",
            **words("training", self.training, ("loss", "fve", "l0")),
            **words("held out", self.report or {}, ("fve", "l0", "ce_loss_score", "dead_fraction")),
            "latents": f"{self.d_sae:,}, {self.n_dead:,} of them dead at the end of training",
            "folder": self.folder,
            "stopped early": self.error,
            "warning": self.warning,
        }

    def _facts(self) -> Facts:
        return Facts(f"Summary of {self.name}", self.facts)


def summarise(
    name: str,
    trainer: Trainer,
    metrics: dict[str, Any],
    report: Report | None,
    used: Usage,
    folder: Path | None,
    error: str | None = None,
) -> RunSummary:
    """The summary of ``trainer`` where it stands."""
    times = used.times
    training_seconds = 0.0 if times is None else times["collecting"] + times["steps"]
    n_dead = int((trainer.statistics.tokens_since_fired >= trainer.dead_after).sum())
    return RunSummary(
        name=name or ("run" if folder is None else folder.name),
        tokens=trainer.tokens_seen,
        seconds=None if times is None else sum(times.values()),
        times=times,
        tokens_per_second=trainer.tokens_seen / training_seconds if training_seconds else None,
        peak_memory_bytes=used.peak_memory,
        d_sae=trainer.coder.d_sae,
        n_alive=trainer.coder.d_sae - n_dead,
        n_dead=n_dead,
        training=metrics,
        report=None if report is None else report.to_dict(),
        folder=None if folder is None else str(folder),
        error=error,
        warning=explains_nothing(trainer, metrics.get("fve") if report is None else report.fve),
    )


def memory_line(runs: Sequence[StepMemory], *, has_folders: bool = False) -> str:
    """What the steps of trainers that take turns will hold beside the model and the rows; and their checkpoints."""
    kept, passing = sum(run.kept for run in runs), max(run.passing for run in runs)
    weights = sum(run.weights for run in runs)
    parts = {
        "weights": weights,
        "Adam's moments": sum(run.moments for run in runs),
        "pre-activations": sum(run.pre_activations for run in runs),
        "a step's gradients and entries": passing,
    }
    of_what = ", ".join(f"{name} {readable_bytes(n)}" for name, n in parts.items())
    line = f"memory: {readable_bytes(weights + kept + passing)} beside model and rows ({of_what})"
    checkpoints = sum(run.snapshot for run in runs)
    return f"{line}; checkpoints: {readable_bytes(checkpoints)} of the host's" if has_folders else line


def summary_table(summaries: Sequence[RunSummary]) -> str:
    """One plain table, a row for each run; what stopped one early, and what is wrong with its dictionary, below it."""
    cells = [_cells(summary) for summary in summaries]
    table = [[head for head, _ in cells[0]], *([text for _, text in row] for row in cells)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines += [
        f"{summary.name}: {n:,} rows ({n / max(1, summary.tokens):.2%}) with norms far above the median left out"
        for summary in summaries
        if (n := summary.training.get("n_outlier_rows") or 0) > 0
    ]
    lines += [f"{summary.name} stopped early: {summary.error}" for summary in summaries if summary.error is not None]
    lines += [f"{summary.name}: {summary.warning}" for summary in summaries if summary.warning is not None]
    return terminal_lines(lines)


_TIMES = {"collecting": "collect", "steps": "steps", "evaluation": "evaluate", "saving": "save"}
"""Heads of the parts of ``time`` that are shown; what is left is ``other``."""


def _cells(summary: RunSummary) -> list[tuple[str, str]]:
    """Heads and texts."""
    training, report, rate = summary.training, summary.report or {}, summary.tokens_per_second
    times = summary.times or {}
    return [
        ("run", terminal_line(summary.name)),
        ("tokens", f"{summary.tokens:,}"),
        ("time", duration(summary.seconds)),
        *((head, duration(times.get(part))) for part, head in _TIMES.items()),
        ("tok/s", "-" if rate is None else short_number(rate)),
        ("peak", "-" if summary.peak_memory_bytes is None else readable_bytes(summary.peak_memory_bytes)),
        ("loss", _number(training.get("loss"))),
        ("FVE", _number(training.get("fve"))),
        ("L0", _number(training.get("l0"))),
        ("alive", f"{summary.n_alive:,}"),
        ("dead", f"{summary.n_dead:,}"),
        ("held-out FVE", _number(report.get("fve"))),
        ("held-out L0", _number(report.get("l0"))),
        ("CE score", _number(report.get("ce_loss_score"))),
        ("KL", _number(report.get("kl"))),
        ("folder", summary.folder or "-"),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """``1.5 s``, ``3.2 min``, ``4 h 05 min``."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
