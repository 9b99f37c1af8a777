"""The training loop: batches in, steps, and callbacks at the right moments. It knows nothing else."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from monosema.core.errors import DataError, is_out_of_memory
from monosema.core.logs import get_logger
from monosema.training.checkpoint_plan import CheckpointPlan
from monosema.training.together import prepare_together
from monosema.training.trainer import NonFiniteStepError, Rows, Trainer

logger = get_logger("monosema.training")

_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The terminal was closed; unknown on Windows."""


@runtime_checkable
class Batches(Protocol):
    """What the loop needs of a source of rows."""

    def __next__(self) -> Tensor: ...


class RunInterrupted(KeyboardInterrupt):
    """A signal or ``max_hours`` stopped the run: after a step, whose checkpoint is written, or before any step."""


class Callback:
    """Called by the loop; the methods do nothing unless a callback defines them. None may change the trainer."""

    def on_step(self, trainer: Trainer) -> None:
        """After every step."""

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Every ``log_every`` steps and after the last, with the newest step's metrics."""

    def is_checkpoint_due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is due that the config does not ask for; asked after ``on_step``."""
        return False

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Whenever a checkpoint is due, after the last step, and before a stop before it."""

    def on_end(self, trainer: Trainer) -> None:
        """When the loop is done with the last step, or stops before it; not after an error."""


@dataclass(eq=False)
class FitRun:
    """One trainer in a loop of several."""

    trainer: Trainer
    """The trainer."""
    callbacks: Sequence[Callback]
    """Its callbacks."""
    columns: Callable[[Tensor], Tensor] | None = None
    """Takes its own columns of a batch; None for the whole batch."""
    name: str = ""
    """What it is called in messages."""
    error: NonFiniteStepError | None = None
    """Why it stopped before its last step."""
    saved_at: int = -1
    """The step of its newest checkpoint in this loop."""
    plan: CheckpointPlan = field(init=False)
    """When it is checkpointed."""

    def __post_init__(self) -> None:
        trainer = self.trainer
        self.plan = CheckpointPlan.of(trainer.config, trainer.batch_size, trainer.n_steps)

    @property
    def is_unfinished(self) -> bool:
        return self.error is None and self.trainer.step_number < self.trainer.n_steps


def fit(trainer: Trainer, batches: Batches, callbacks: Sequence[Callback]) -> None:
    """Run ``trainer`` from where it stands to its last step.

    Raises:
        RunInterrupted: SIGINT, SIGTERM or SIGHUP arrived, or ``max_hours`` are over; the current step was finished and
            a checkpoint written. Before the first batch the signal acts at once, and nothing is written.
        NonFiniteStepError: a step was not finite; noticed at the next logging step.
        DataError: the source ended before the run did.
    """
    run = FitRun(trainer, callbacks)
    fit_all([run], batches)
    if run.error is not None:
        raise run.error


def fit_all(runs: Sequence[FitRun], batches: Batches) -> None:
    """Run several trainers on one pass of ``batches``, which begins at the step of the one that is furthest behind.

    A trainer takes part once the batches have come to its step. One whose step is not finite stops alone, with its
    ``error`` set. Raises as ``fit`` does, but for that.
    """
    unfinished = [run for run in runs if run.is_unfinished]
    place = min((run.trainer.step_number for run in unfinished), default=0)
    limits = [hours for run in unfinished if (hours := run.trainer.config.max_hours) is not None]
    deadline = time.monotonic() + 3600 * min(limits, default=math.inf)
    with stop_requests() as stop:
        while unfinished:
            try:
                batch = next(batches)
            except StopIteration:
                most = max(run.trainer.n_steps for run in unfinished)
                raise DataError(
                    f"the rows ended after step {place} of {most}; lower tokens, or give the source more epochs"
                ) from None
            except (MemoryError, RuntimeError, OSError) as error:
                if is_out_of_memory(error):  # the step before is whole
                    _save_all(unfinished, place)
                raise
            stop.acts_at_once = False
            due = [run for run in unfinished if run.trainer.step_number == place]
            own = [batch if run.columns is None else run.columns(batch) for run in due]
            for run, rows in zip(due, prepare_together([run.trainer for run in due], own), strict=True):
                _step(run, rows)
            place += 1
            unfinished = [run for run in unfinished if run.is_unfinished]
            is_late = time.monotonic() >= deadline
            if (stop.signal is not None or is_late) and unfinished:
                _save_all(unfinished, place)
                _end(runs)
                most = max(run.trainer.n_steps for run in unfinished)
                reason = "max_hours" if stop.signal is None else stop.signal.name
                raise RunInterrupted(
                    f"stopped by {reason} after step {place} of {most}; the same call resumes from here"
                )
        _end(runs)


def _step(run: FitRun, rows: Rows) -> None:
    trainer, config = run.trainer, run.trainer.config
    trainer.step_prepared(rows)
    step, last = trainer.step_number, trainer.step_number == trainer.n_steps
    for callback in run.callbacks:
        callback.on_step(trainer)
    asked = [callback.is_checkpoint_due(trainer) for callback in run.callbacks]
    checkpoint_due = run.plan.is_due(step) or any(asked)
    log_due = last or step % config.log_every == 0
    if not (log_due or checkpoint_due) or not _is_finite(run):
        return
    if log_due:
        metrics = trainer.metrics()
        for callback in run.callbacks:
            callback.on_log(trainer, metrics)
    if checkpoint_due:
        _checkpoint(run)


def _save_all(runs: Sequence[FitRun], place: int) -> None:
    """Checkpoint the runs that stand at step ``place``, unless that step's checkpoint is there."""
    for run in runs:
        if 0 < place == run.trainer.step_number != run.saved_at and _is_finite(run):
            _checkpoint(run)


def _end(runs: Sequence[FitRun]) -> None:
    for run in runs:
        for callback in run.callbacks:
            callback.on_end(run.trainer)


def _is_finite(run: FitRun) -> bool:
    try:
        run.trainer.check_finite()
    except NonFiniteStepError as error:
        run.error = error
        logger.error("%s%s", f"{run.name}: " if run.name else "", error)
    return run.error is None


def _checkpoint(run: FitRun) -> None:
    for callback in run.callbacks:
        callback.on_checkpoint(run.trainer)
    run.saved_at = run.trainer.step_number


@dataclass
class StopRequest:
    """What a signal has asked for."""

    signal: signal.Signals | None = None
    """The first that arrived."""
    acts_at_once: bool = True
    """Whether a signal ends the loop where it is, because no step has begun."""


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGINT, SIGTERM and SIGHUP are noted; a second SIGINT or SIGTERM acts as it would have without us.

    A closed terminal may send SIGHUP twice, so further ones are ignored. One that the process ignores (``nohup``) stays
    ignored.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        for each, handler in previous.items():
            signal.signal(each, signal.SIG_IGN if each is _HANGUP else handler)
        if request.acts_at_once:
            raise RunInterrupted(
                f"stopped by {request.signal.name} before the first step of this call; nothing is lost, and the same "
                "call starts again"
            )
        logger.warning(
            "%s: the step under way is finished and a checkpoint written; a second Ctrl-C stops at once",
            request.signal.name,
        )

    for each in (signal.SIGINT, signal.SIGTERM, _HANGUP):
        if each is not None and not (each is _HANGUP and signal.getsignal(each) is signal.SIG_IGN):
            previous[each] = signal.signal(each, note)
    try:
        yield request
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
