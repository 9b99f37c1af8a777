"""Names beside points: each where it covers nothing, or nowhere."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import final
from xml.etree.ElementTree import Element

from monosema.evaluation.page.markup import element

_HEIGHT = 12.0
_CHARACTER = 6.2
"""Width of a character, a little more than fonts have on average."""
_LONGEST = 22
_GAP = 7.0
_SIDES = ((1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1))
"""Right or left, below or above, in the order tried: a front rises to the right, so first where it is not."""


@final
@dataclass(frozen=True)
class Box:
    """A rectangle of a picture."""

    left: float
    """Smallest x."""
    top: float
    """Smallest y."""
    right: float
    """Largest x."""
    bottom: float
    """Largest y."""

    def meets(self, other: Box) -> bool:
        """Whether they have a point in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Whether the other is inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@final
class Labels:
    """Names placed one after the other within ``inside``; ``n_left_out`` found no room."""

    def __init__(self, inside: Box) -> None:
        self._inside = inside
        self._taken: list[Box] = []
        self.n_left_out = 0

    def keep_free(self, box: Box) -> None:
        """No name may cover this."""
        self._taken.append(box)

    def placed(self, name: str, x: float, y: float) -> Element | None:
        """The name beside ``x, y``; None where it would cover something on every side."""
        text = name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
        width = _CHARACTER * sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)
        for across, down in _SIDES:
            left = x + across * _GAP - width * (1 - across) / 2
            middle = y + down * (_GAP + _HEIGHT / 2 if across == 0 else _GAP + 2)
            box = Box(left, middle - _HEIGHT / 2, left + width, middle + _HEIGHT / 2)
            if self._inside.holds(box) and not any(box.meets(other) for other in self._taken):
                self._taken.append(box)
                anchor = {1: "start", 0: "middle", -1: "end"}[across]
                at = {"x": x + across * _GAP, "y": middle + 4, "text-anchor": anchor, "class": "label"}
                return element("text", at, text)
        self.n_left_out += 1
        return None
