"""The colour and shape that stand for what dictionaries are compared on; 42 differ."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from monosema.evaluation.page.markup import element
from monosema.evaluation.page.rows import Ground, ground_labels

_N_COLOURS = 7
_MARKERS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.2L5 3.6H-5z",
    "M0 -5.6L5.6 0L0 5.6L-5.6 0z",
    "M0 5.2L5 -3.6H-5z",
    "M-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
)
"""Circle, square, triangle, diamond, triangle on its tip, plus; around 0, 0."""


def marker(place: int, *, is_filled: bool = True) -> Element:
    """The marker of the ``place``-th ground."""
    shape = element("path", {"d": _MARKERS[place % len(_MARKERS)]})
    return element("g", {"class": f"mark {colour(place)}" + ("" if is_filled else " hollow")}, shape)


def colour(place: int) -> str:
    """The class with the colour of the ``place``-th ground."""
    return f"g{place % _N_COLOURS}"


def _swatch(place: int) -> Element:
    """The marker by itself, which says nothing that is not said in words beside it."""
    box = {"viewBox": "-7 -7 14 14", "width": 12, "height": 12, "aria-hidden": "true"}
    return element("svg", box, marker(place))


def named(place: int, name: str) -> Element:
    """A name with its marker in front."""
    return element("span", {"class": "named"}, _swatch(place), element("span", {"class": "name"}, name))


def legend(found: Sequence[Ground]) -> Element:
    """Which marker stands for what."""
    items = [element("li", {}, named(place, label)) for place, label in enumerate(ground_labels(found))]
    return element("ul", {"class": "legend", "aria-label": "Dictionaries compared with each other"}, *items)
