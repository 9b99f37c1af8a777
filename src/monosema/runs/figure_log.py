"""What a run logs, on its way to the sink: figures of training, and of held-out rows while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from monosema.runs.clock import Usage
from monosema.runs.columns import Columns
from monosema.runs.config import EvaluationOptions
from monosema.runs.heldout import RowSource, heldout_figures, measure, outlier_figures
from monosema.tracking import Sink
from monosema.training import Callback, Trainer


@final
class FigureLog(Callback):
    """Gives every figure of one run to its sink: when the loop logs, and every ``eval_every`` steps those of the
    dictionary on held-out rows, as it would be saved."""

    def __init__(self, sink: Sink, rows: RowSource, columns: Columns, options: EvaluationOptions | None, used: Usage):
        """With ``options`` None nothing is measured on held-out rows: nobody would see it."""
        self._sink, self._rows, self._columns, self._options, self._used = sink, rows, columns, options, used
        self.heldout: tuple[int, dict[str, Any]] | None = None
        """The step of the newest evaluation and its figures."""

    def on_step(self, trainer: Trainer) -> None:
        every = trainer.config.eval_every
        if self._options is None or every == 0 or trainer.step_number % every != 0:
            return
        with self._used.clock.part("evaluation"):
            report = measure(trainer.inference_coder(), self._rows, self._columns, self._options, progress=False)
        if report is not None:
            self.heldout = trainer.step_number, heldout_figures(report)
            self._sink.log(*self.heldout)

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self._sink.log(trainer.step_number, {**metrics, **outlier_figures(self._rows)})


@final
class LastFigures:
    """A subscriber that remembers the newest figures of training."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Remember ``figures`` if they are a step's, not those of held-out rows."""
        if "loss" in figures:
            self.metrics = {"step": step, **figures}
