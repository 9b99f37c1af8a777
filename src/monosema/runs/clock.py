"""What a run spends its time on: every moment of ``train`` belongs to one part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from monosema.core.memory import peak_memory
from monosema.training import Callback, Trainer
from monosema.training.loop import Batches

PARTS = ("collecting", "steps", "evaluation", "saving", "other")
"""Waiting for activations; training steps; evaluation while training and at the end; making checkpoints (without what a
thread does meanwhile), the dictionary and the report; everything else, such as opening the folder."""


class Clock:
    """Seconds by part. The part is ``other`` where no ``part`` is entered; an inner one interrupts the outer one."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "other", now()

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        self._enter(self._part)
        return dict(self._seconds)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time inside is that of ``name``."""
        before = self._part
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, part: str) -> None:
        now = self._now()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now


class TimedBatches:
    """Batches of which each is waited for in the part ``collecting``."""

    def __init__(self, batches: Batches, clock: Clock):
        self._batches, self._clock = batches, clock

    def __next__(self) -> Tensor:
        with self._clock.part("collecting"):
            return next(self._batches)


class Usage(Callback):
    """Time and peak memory of one run, on top of what earlier calls used; times of None are unknown and stay so."""

    def __init__(self, clock: Clock, times: Mapping[str, float] | None, peak_memory: int | None = None):
        self.clock, self.peak_memory = clock, peak_memory
        self._before = None if times is None else dict(times)
        self._mark: dict[str, float] | None = None

    @property
    def times(self) -> dict[str, float] | None:
        """Seconds by part over all calls."""
        if self._before is None or self._mark is None:
            return self._before
        now = self.clock.read()
        return {part: self._before[part] + now[part] - self._mark[part] for part in PARTS}

    def start(self, *, from_the_beginning: bool = False) -> None:
        """Count from now on, or what the clock has counted as well. Without it, time runs from the end of the first
        step: a run that joins a pass of several."""
        self._mark = dict.fromkeys(PARTS, 0.0) if from_the_beginning else self.clock.read()

    def stop(self) -> None:
        """Count no more."""
        self._before, self._mark = self.times, None

    @contextlib.contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """Count what is inside, as ``part``."""
        self.start()
        with self.clock.part(part):
            yield
        self.stop()

    def on_step(self, trainer: Trainer) -> None:
        if self._mark is None:
            self.start()

    def on_checkpoint(self, trainer: Trainer) -> None:
        peak = peak_memory(trainer.coder.device)
        if peak is not None:
            self.peak_memory = max(peak, self.peak_memory or 0)


def times_of(plain: Any) -> dict[str, float] | None:
    """The times that a checkpoint or a summary holds; None where they are not there."""
    times = plain.get("times") if isinstance(plain, Mapping) else None
    if not isinstance(times, Mapping) or set(times) != set(PARTS):
        return None
    known = all(isinstance(value, float | int) and not isinstance(value, bool) for value in times.values())
    return {part: float(times[part]) for part in PARTS} if known else None
