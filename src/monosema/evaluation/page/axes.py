"""Axes of a picture: where a value lies, and the round values to mark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

_LOGARITHMIC = (4.0, 1e9)
"""Largest value over smallest from which, and up to which, an axis is logarithmic."""
_ALIKE = 1e-9
"""Values that differ by less than this part of their size are drawn as one."""


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from ``low`` to ``high`` between two coordinates."""

    low: float
    """Value at ``start``."""
    high: float
    """Value at ``stop``; greater than ``low``."""
    start: float
    """Coordinate of ``low``."""
    stop: float
    """Coordinate of ``high``."""
    logarithmic: bool = False
    """Whether equal lengths are equal ratios; ``low`` is then positive."""

    def place(self, value: float) -> float:
        """The coordinate of a value; that of the nearer end for one beyond."""
        low, high, value = (self._measure(each) for each in (self.low, self.high, max(value, self.low)))
        return self.start + (self.stop - self.start) * min(1.0, (value - low) / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """Three to nine round values within, ascending, with their text."""
        if self.logarithmic:
            for digits in ((1,), (1, 2, 5), range(1, 10)):
                values = self._products(digits)
                if len(values) >= 3:
                    return [(value, f"{value:,.10g}") for value in values]
        return self._linear_ticks()

    def _measure(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def _products(self, digits: Iterable[int]) -> list[float]:
        """Each digit times each power of ten."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [float(f"{digit}e{power}") for power in powers for digit in digits]
        return [value for value in values if self.low <= value <= self.high]

    def _linear_ticks(self) -> list[tuple[float, str]]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        power = math.floor(math.log10((self.high - self.low) / 3))
        step = max(digit for digit in (1, 2, 5) if 3 * digit * 10.0**power <= (self.high - self.low) * (1 + _ALIKE))
        multiple = step * 10.0**power
        first, last = math.ceil(self.low / multiple - _ALIKE), math.floor(self.high / multiple + _ALIKE)
        decimals = max(0, -power)
        return [(n * multiple, f"{n * multiple + 0.0:,.{decimals}f}") for n in range(first, last + 1)]


def axis_of(values: Iterable[float], *, start: float, stop: float, may_be_logarithmic: bool = False) -> Axis:
    """An axis with room for all values that are finite: a little beyond them, or around the only one.

    It is logarithmic where it may be, all values are positive, and the largest is 4 times the smallest or more.
    """
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    least, most = _LOGARITHMIC
    if may_be_logarithmic and low > 0 and least * low <= high <= most * low:
        room = (high / low) ** 0.06
        return Axis(low=low / room, high=high * room, start=start, stop=stop, logarithmic=True)
    if high - low <= _ALIKE * max(abs(low), abs(high)):
        room = abs(low) / 10 or 1.0
    else:
        room = 0.06 * (high - low)
    return Axis(low=low - room, high=high + room, start=start, stop=stop)
