"""Progress for people: a bar on a terminal or in a notebook, logged lines otherwise.

A first line comes at once. Lines come every 2.5 seconds in the first minute and every 30 seconds after it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from tqdm.auto import tqdm

from monosema.core.console import Console, print_error
from monosema.core.logs import get_logger
from monosema.core.printable import terminal_line

logger = get_logger("monosema.progress")

EARLY_INTERVAL, EARLY_SECONDS = 2.5, 60.0
"""Seconds between lines at first, and for how long."""


class Progress:
    """Counts units of work towards ``total``, where that is known, and shows rate, time left and a few figures.

    ``interval`` is in seconds and holds after the first minute. Nothing is shown when ``enabled`` is False or the
    ``monosema`` logger is quieter than WARNING. Lines go to the logger where INFO is wanted, else, in a script that set
    up no logging, to standard error. What is ``passing`` leaves no bar and no last line behind.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str = "tok",
        done: int = 0,
        interval: float = 30.0,
        enabled: bool = True,
        passing: bool = False,
    ):
        label = terminal_line(label)
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.interval, self._passing = interval, passing
        self._start_done, self._started = done, time.monotonic()
        self._last_line = self._started
        self._figures: dict[str, float] = {}
        shown = enabled and logger.isEnabledFor(logging.WARNING)
        self._lines = shown and not _interactive()
        self._bar = (
            tqdm(
                total=total,
                initial=done,
                desc=label,
                unit=unit,
                unit_scale=True,
                dynamic_ncols=True,
                leave=not passing,
                file=Console(sys.stderr),
            )
            if shown and not self._lines
            else None
        )
        if self._lines and (total is None or done < total):
            say(self._first_line())

    def advance(self, n: int) -> None:
        """``n`` more units are done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
            return
        now = time.monotonic()
        if self._lines and now - self._last_line >= interval_at(now - self._started, self.interval):
            self._last_line = now
            say(self.line())

    def figures(self, values: Mapping[str, float]) -> None:
        """The newest figures (loss, L0, …) to show beside the rate."""
        values = {terminal_line(name): value for name, value in values.items()}
        self._figures = values
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})

    def rate(self) -> float:
        """Units per second since this object was made."""
        return (self.done - self._start_done) / max(time.monotonic() - self._started, 1e-9)

    def _first_line(self) -> str:
        """``train: 3.0M tok, 1.2M done``."""
        total = "" if self.total is None else f": {short_number(self.total)} {self.unit}"
        return self.label + total + (f", {short_number(self.done)} done" if self.done else "")

    def line(self) -> str:
        """``train 1.2M/3.0M tok (40%), 31k tok/s, 58 s left, loss=…``."""
        rate, speed = self.rate(), f"{short_number(self.rate())} {self.unit}/s"
        if self.total is None:
            parts = [f"{self.label} {short_number(self.done)} {self.unit}", speed]
        else:
            left = max(0, self.total - self.done) / rate if rate > 0 else float("inf")
            parts = [
                f"{self.label} {short_number(self.done)}/{short_number(self.total)} {self.unit}"
                f" ({100 * self.done / max(self.total, 1):.0f}%)",
                speed,
                f"{left:.0f} s left",
            ]
        parts += [f"{name}={value:.4g}" for name, value in self._figures.items()]
        return ", ".join(parts)

    def close(self) -> None:
        """Remove the bar, or log the last line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._lines and not self._passing and self.done > self._start_done:
            say(self.line())

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def doing(label: str, *, enabled: bool = True) -> Iterator[None]:
    """Say ``label`` at once and then, as often as ``Progress``, how long what is inside has taken.

    For work whose size is not known beforehand. It is shown where ``Progress`` is.
    """
    label = terminal_line(label)
    if not enabled or not logger.isEnabledFor(logging.WARNING):
        yield
        return
    say(f"{label} ...")
    over = threading.Event()
    thread = threading.Thread(target=_repeat, args=(label, over.wait), name="monosema-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _repeat(label: str, wait: Callable[[float], bool]) -> None:
    """Say how long ``label`` has taken, until ``wait(seconds)`` is True."""
    started = time.monotonic()
    while not wait(interval_at(time.monotonic() - started, 30.0)):
        say(f"{label} ... {time.monotonic() - started:.0f} s so far")


def interval_at(elapsed: float, interval: float) -> float:
    """Seconds between lines after ``elapsed`` seconds, where they are ``interval`` later on."""
    return min(interval, EARLY_INTERVAL) if elapsed < EARLY_SECONDS else interval


def short_number(value: float) -> str:
    """1234567 as ``1.2M``."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.0f}"


def say(line: str) -> None:
    """Show a line where progress is shown: by the logger where INFO is wanted, else on standard error."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", line)
    else:
        print_error(line)


def _interactive() -> bool:
    return "ipykernel" in sys.modules or sys.stderr.isatty()
