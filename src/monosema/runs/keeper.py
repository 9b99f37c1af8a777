"""A run's checkpoints on their way into its folder."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from monosema import hub
from monosema.coders import TrainableDictionary
from monosema.core.errors import FileError
from monosema.core.logs import get_logger
from monosema.data import IterableRows
from monosema.runs.clock import Usage
from monosema.runs.figure_log import FigureLog
from monosema.runs.folder import RunFolder
from monosema.runs.heldout import RowSource
from monosema.training import Callback, Checkpoint, Trainer
from monosema.training.background import BackgroundWriter
from monosema.training.config import is_better
from monosema.training.loop import RunInterrupted
from monosema.training.snapshot import Folding, Snapshot, on_host

logger = get_logger("monosema.runs")


class Keeper(Callback):
    """Writes checkpoints into the run folder; a context manager that leaves no checkpoint half-written.

    A step is held for a copy of the state, taken once the checkpoint before it is written; a thread does the rest.
    With ``background_checkpoints=False`` the step waits for all of it, and the same files come of it.
    """

    def __init__(self, folder: RunFolder, rows: RowSource, used: Usage, log: FigureLog):
        self._folder, self._rows, self._used, self._log = folder, rows, used, log
        self._snapshot, self._writer = Snapshot(), BackgroundWriter()
        self._has_room = False
        self._best: dict[str, Any] | None = None
        self._is_best = False

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, RunInterrupted):
            return  # a second Ctrl-C: what is half-written is not a checkpoint yet and is removed by the next call
        try:
            self._writer.wait()
        except FileError as of_writer:
            if error is None:
                raise
            logger.error("%s", of_writer)

    def resume(self, checkpoint: Checkpoint, keep_best: str | None) -> None:
        """Take up which checkpoint was the best."""
        best = checkpoint.plain.get("best")
        if best is not None and best["figure"] == keep_best:
            self._best = best
            self._folder.checkpoints.point_best(best["step"])

    def on_step(self, trainer: Trainer) -> None:
        if trainer.config.background_checkpoints and not self._has_room:  # too little is noticed at the first step
            with self._used.clock.part("saving"):
                self._snapshot.take(self._state(trainer)[0])
            self._has_room = True
        self._is_best = False
        heldout = self._log.heldout
        if heldout is not None and heldout[0] == trainer.step_number:
            self._compare(trainer, heldout[1])

    def is_checkpoint_due(self, trainer: Trainer) -> bool:
        return self._is_best

    def on_checkpoint(self, trainer: Trainer) -> None:
        with self._used.clock.part("saving"):
            self._checkpoint(trainer)

    def _checkpoint(self, trainer: Trainer) -> None:
        self._writer.wait()
        tensors, plain = self._state(trainer)
        if trainer.config.background_checkpoints:
            self._snapshot.take(tensors)
            tensors = self._snapshot.tensors
        own = {name.removeprefix("coder."): value for name, value in tensors.items() if name.startswith("coder.")}
        save = partial(_save, on_host(trainer.coder, own), trainer.folding, trainer.statistics.log10_density())
        write = partial(self._write, trainer.step_number, tensors, plain, save, self._is_best)
        if trainer.config.background_checkpoints:
            self._writer.start(write)
        else:
            write()

    def on_end(self, trainer: Trainer) -> None:
        with self._used.clock.part("saving"):
            self._writer.wait()

    def _write(self, step: int, tensors: dict[str, Tensor], plain: dict[str, Any], save: Any, is_best: bool) -> None:
        self._folder.metrics_log.flush()
        self._folder.checkpoints.write(step, tensors, plain, lambda path: save(path / "coder"), is_best=is_best)

    def _compare(self, trainer: Trainer, figures: dict[str, Any]) -> None:
        name = trainer.config.keep_best
        if name is None:
            return
        value, before = figures[name], None if self._best is None else self._best["value"]
        self._is_best = value is not None and is_better(name, value, before)
        if self._is_best:
            self._best = {"figure": name, "value": value, "step": trainer.step_number}

    def _state(self, trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, plain = trainer.state_dict()
        state: dict[str, Any] = {
            "tokens": trainer.tokens_seen,
            "trainer": plain,
            "times": self._used.times,
            "peak_memory": self._used.peak_memory,
            "metrics": self._folder.metrics_log.record(),
            "best": self._best,
        }
        if not isinstance(self._rows, IterableRows):
            stream = self._rows.state_dict()
            tensors |= {f"rows.{name}": value for name, value in stream.items() if isinstance(value, Tensor)}
            state["rows"] = {name: value for name, value in stream.items() if not isinstance(value, Tensor)}
        return tensors, copy.deepcopy(state)


def save_coder(trainer: Trainer, path: Path) -> None:
    """Save what a checkpoint of this step would hold as its dictionary."""
    _save(on_host(trainer.coder), trainer.folding, trainer.statistics.log10_density(), path)


def _save(coder: TrainableDictionary, folding: Folding, log10_density: Tensor, path: Path) -> None:
    hub.save(folding(coder), path, log10_density=log10_density)
