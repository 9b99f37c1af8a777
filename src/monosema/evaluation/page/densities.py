"""How often latents fire: a histogram for each dictionary, on axes that all share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from monosema.core.words import counted
from monosema.evaluation.page.axes import Axis
from monosema.evaluation.page.markers import colour, named
from monosema.evaluation.page.markup import element
from monosema.evaluation.page.rows import Ground, Row

_BINS_PER_DECADE = 2
_DECADES = 10
_N_BINS = _BINS_PER_DECADE * _DECADES
_WIDTH, _HEIGHT = 300, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 292, 24, 138
_DEAD_WIDTH = 24
"""Of the bar of latents that never fired, which stands apart: its logarithm has no place on the axis."""
_GAP = 28
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def densities(rows: Sequence[Row], found: Sequence[Ground]) -> list[Element]:
    """A picture for each dictionary, or words in its place where its report has no histogram."""
    alone = {row.dictionary: row for row in rows}.values()
    shares = {row.dictionary: _shares(row) for row in alone}
    known = [each for each in shares.values() if each is not None]
    first = min((bin_ for each in known for bin_ in range(1, _N_BINS) if each[bin_]), default=_N_BINS - 1)
    lowest = first // _BINS_PER_DECADE - _DECADES
    highest = max((each[bin_] for each in known for bin_ in range(1, _N_BINS)), default=0.0) or 1.0
    x_axis = Axis(low=lowest, high=0, start=_LEFT + _DEAD_WIDTH + _GAP, stop=_RIGHT)
    y_axis = Axis(low=0, high=100 * highest, start=_BOTTOM, stop=_TOP)
    return [
        _card(row, found.index(row.ground(of_losses=False)), shares[row.dictionary], x_axis, y_axis) for row in alone
    ]


def _shares(row: Row) -> list[float] | None:
    """Of the latents in each bin."""
    counts = row.report.log10_density_histogram
    return None if counts is None or len(counts) != _N_BINS else [count / max(1, sum(counts)) for count in counts]


def _card(row: Row, place: int, shares: Sequence[float] | None, x_axis: Axis, y_axis: Axis) -> Element:
    report = row.report
    heading = element("h3", {}, named(place, row.name))
    card = {"class": "card density", "data-dictionary": row.dictionary}
    if shares is None:
        return element("figure", card, heading, element("p", {"class": "hint"}, "Its report has no firing densities."))
    n_dead = report.d_sae - report.n_alive
    said = f"{counted(report.d_sae, 'latent')}, {n_dead:,} never fired ({_percent(report.dead_fraction)})"
    picture = element(
        "svg",
        {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "class": "plot", "role": "img", "aria-label": f"{row.name}: {said}"},
        *_frame(x_axis, y_axis),
        *_bars(report.log10_density_histogram or (), shares, place, x_axis, y_axis),
    )
    return element("figure", card, heading, element("p", {"class": "hint"}, said), picture)


def _frame(x_axis: Axis, y_axis: Axis) -> list[Element]:
    parts = []
    for value, text in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(element("line", {"x1": _LEFT, "x2": _RIGHT, "y1": y, "y2": y, "class": "grid"}))
        parts.append(element("text", {"x": _LEFT - 6, "y": y + 4, "text-anchor": "end"}, text))
    for low, high in ((_LEFT, _LEFT + _DEAD_WIDTH), (x_axis.start, x_axis.stop)):
        parts.append(element("line", {"x1": low, "x2": high, "y1": _BOTTOM, "y2": _BOTTOM, "class": "axis"}))
    dead = {"x": _LEFT + _DEAD_WIDTH / 2, "y": _BOTTOM + 16, "text-anchor": "middle", "class": "dead"}
    parts.append(element("text", dead, "dead"))
    step = max(1, math.ceil(-x_axis.low / 5))
    for decade in range(0, round(x_axis.low) - 1, -step):
        x = x_axis.place(decade)
        parts.append(element("line", {"x1": x, "x2": x, "y1": _BOTTOM, "y2": _BOTTOM + 4, "class": "axis"}))
        parts.append(element("text", {"x": x, "y": _BOTTOM + 16, "text-anchor": "middle"}, _power(decade)))
    below = {"x": _RIGHT, "y": _HEIGHT - 6, "text-anchor": "end", "class": "title"}
    parts.append(element("text", below, "share of tokens it fires on, logarithmic →"))
    parts.append(element("text", {"x": 4, "y": 11, "class": "title"}, "↑ latents, % of the dictionary"))
    return parts


def _bars(counts: Sequence[int], shares: Sequence[float], place: int, x_axis: Axis, y_axis: Axis) -> list[Element]:
    bars = []
    for bin_, (count, of_all) in enumerate(zip(counts, shares, strict=True)):
        if not count:
            continue
        low, high = bin_ / _BINS_PER_DECADE - _DECADES, (bin_ + 1) / _BINS_PER_DECADE - _DECADES
        if bin_ == 0:
            left, right, where = float(_LEFT), float(_LEFT + _DEAD_WIDTH), "never fired"
        else:
            left, right = x_axis.place(low) + 0.75, x_axis.place(high) - 0.75
            where = f"on {_percent(10**low)} to {_percent(10**high)} of the tokens"
        top = min(y_axis.place(100 * of_all), _BOTTOM - 1)
        box = {"x": left, "width": right - left, "y": top, "height": _BOTTOM - top}
        said = f"{counted(count, 'latent')} ({_percent(of_all)}): {where}"
        bars.append(
            element("rect", {**box, "class": "dead" if bin_ == 0 else colour(place)}, element("title", {}, said))
        )
        if bin_ == 0 and 100 * of_all > y_axis.high:
            beside = {"x": right + 4, "y": _TOP + 10, "class": "dead"}
            bars.append(element("text", beside, f"↑ {_percent(of_all)}"))
    return bars


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


def _power(exponent: int) -> str:
    return "1" if exponent == 0 else f"10{str(exponent).translate(_SUPERSCRIPTS)}"
