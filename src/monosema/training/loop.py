"""The training loop: batches in, steps, and callbacks at the right moments. It knows nothing else."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from monosema.core.errors import DataError
from monosema.training.trainer import Trainer


@runtime_checkable
class Batches(Protocol):
    """What the loop needs of a source of rows."""

    def __next__(self) -> Tensor: ...


class RunInterrupted(KeyboardInterrupt):
    """The run was stopped by a signal after a whole step; its checkpoint is written."""


class Callback:
    """Called by the loop; the methods do nothing unless a callback defines them. None may change the trainer."""

    def on_step(self, trainer: Trainer) -> None:
        """After every step."""

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Every ``log_every`` steps and after the last, with the newest step's metrics."""

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Every ``checkpoint_every`` steps, after the last, and before a stop by signal."""


def fit(trainer: Trainer, batches: Batches, callbacks: Sequence[Callback]) -> None:
    """Run ``trainer`` from where it stands to its last step.

    Raises:
        RunInterrupted: SIGINT or SIGTERM arrived; the current step was finished and a checkpoint written.
        NonFiniteStepError: a step was not finite; noticed at the next logging step.
        DataError: the source ended before the run did.
    """
    config = trainer.config
    every = config.checkpoint_every
    if every is None:
        every = max(1, trainer.n_steps // 10)
    with _stop_requests() as stop:
        while trainer.step_number < trainer.n_steps:
            try:
                batch = next(batches)
            except StopIteration:
                raise DataError(
                    f"the rows ended after step {trainer.step_number} of {trainer.n_steps}; "
                    "lower tokens, or give the source more epochs"
                ) from None
            trainer.step(batch)
            step, last = trainer.step_number, trainer.step_number == trainer.n_steps
            for callback in callbacks:
                callback.on_step(trainer)
            checkpoint_due = last or (every > 0 and step % every == 0) or bool(stop)
            if last or step % config.log_every == 0 or checkpoint_due:
                trainer.check_finite()
                metrics = trainer.metrics()
                if last or step % config.log_every == 0:
                    for callback in callbacks:
                        callback.on_log(trainer, metrics)
            if checkpoint_due:
                for callback in callbacks:
                    callback.on_checkpoint(trainer)
            if stop and not last:
                raise RunInterrupted(
                    f"stopped by {signal.Signals(stop[0]).name} after step {step} of {trainer.n_steps}; "
                    "the same call resumes from here"
                )


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to; a second one acts at once, as it would have without us."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for each in (signal.SIGINT, signal.SIGTERM):
        previous[each] = signal.signal(each, note)
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
