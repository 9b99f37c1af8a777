"""Figures over L0 as pictures: a point with its intervals for each dictionary, and a line along each Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final
from xml.etree.ElementTree import Element

from monosema.evaluation.page.axes import Axis, axis_of
from monosema.evaluation.page.labels import Box, Labels
from monosema.evaluation.page.markers import colour, marker
from monosema.evaluation.page.markup import element
from monosema.evaluation.page.rows import Ground, Row
from monosema.evaluation.report import between
from monosema.metrics.figures import figure_named

CURVES = (
    ("fve", "Fraction of variance explained", "FVE"),
    ("ablations/zero/ce_loss_score", "CE recovered, against zero ablation", "CE recovered"),
    ("ablations/mean/ce_loss_score", "CE recovered, against mean ablation", "CE recovered"),
)
"""Name, heading and axis title of each picture."""

_WIDTH, _HEIGHT = 400, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 388, 26, 262
_RADIUS = 4.5
_CAP = 3.0


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats, by ascending first coordinate.

    One beats another with a first coordinate at most as large and a second at least as large, not both equal. Points
    with a coordinate that is not finite are left out.
    """
    known = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]

    def is_beaten(x: float, y: float) -> bool:
        return any(points[i][0] <= x and points[i][1] >= y and points[i] != (x, y) for i in known)

    return sorted((index for index in known if not is_beaten(*points[index])), key=lambda index: points[index])


def curves(rows: Sequence[Row], found: Sequence[Ground]) -> list[Element]:
    """The pictures for which there is a point."""
    pictures = []
    for key, heading, title in CURVES:
        of_losses = figure_named(key).needs == "predictions"
        # reconstruction is the same for all models of a dictionary
        chosen = rows if of_losses else list({row.dictionary: row for row in reversed(rows)}.values())[::-1]
        points = [
            _Point(row=row, x=x, y=y, key=key, place=found.index(row.ground(of_losses=of_losses)), of_losses=of_losses)
            for row in chosen
            if (x := row.value("l0")) is not None and (y := row.value(key)) is not None and math.isfinite(x + y)
        ]
        if points:
            pictures.append(_figure(points, heading, title, n_missing=len(chosen) - len(points)))
    return pictures


@final
@dataclass(frozen=True, kw_only=True)
class _Point:
    row: Row
    x: float
    y: float
    key: str
    place: int
    of_losses: bool

    @property
    def label(self) -> str:
        return f"{self.row.name} ({self.row.model})" if self.of_losses and self.row.model else self.row.name


def _figure(points: Sequence[_Point], heading: str, title: str, n_missing: int) -> Element:
    x_axis, y_axis = _axes(points)
    fronts = {place: _front(points, place) for place in sorted({point.place for point in points})}
    on_front = {id(point) for front in fronts.values() for point in front}
    labels = Labels(Box(_LEFT, _TOP, _RIGHT + 8, _BOTTOM))
    spots = [(x_axis.place(point.x), y_axis.place(point.y)) for point in points]
    for point, (x, y) in zip(points, spots, strict=True):
        low, high = (y_axis.place(end) for end in point.row.interval(point.key) or (point.y, point.y))
        labels.keep_free(Box(x - _RADIUS, min(high, y - _RADIUS), x + _RADIUS, max(low, y + _RADIUS)))
    picture = element(
        "svg",
        {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "class": "plot", "role": "img", "aria-label": f"{heading} over L0"},
        *_frame(x_axis, y_axis, title),
        *(_line(front, x_axis, y_axis) for front in fronts.values() if len(front) > 1),
        *(_error_bars(point, x_axis, y_axis) for point in points),
        *(
            _marked(point, spot, title, is_on_front=id(point) in on_front)
            for point, spot in sorted(zip(points, spots, strict=True), key=lambda each: id(each[0]) in on_front)
        ),
        *(labels.placed(point.label, x, y) for point, (x, y) in zip(points, spots, strict=True)),
    )
    remarks = [f"{n_missing} without this figure"] if n_missing else []
    remarks += [f"{labels.n_left_out} without room for a name"] if labels.n_left_out else []
    below = element("p", {"class": "hint"}, "; ".join(remarks)) if remarks else None
    return element("figure", {"class": "card"}, element("h3", {}, f"{heading}, over L0"), picture, below)


def _front(points: Sequence[_Point], place: int) -> list[_Point]:
    own = [point for point in points if point.place == place]
    return [own[index] for index in pareto_front([(point.x, point.y) for point in own])]


def _axes(points: Sequence[_Point]) -> tuple[Axis, Axis]:
    """Both have room for the points and, as far again as these reach, for their intervals."""
    bounds = []
    for key_of, values in (("l0", [point.x for point in points]), ("", [point.y for point in points])):
        reach = (max(values) - min(values)) or abs(values[0]) / 10
        ends = [end for point in points for end in point.row.interval(key_of or point.key) or ()]
        bounds.append([*values, *(min(max(end, min(values) - reach), max(values) + reach) for end in ends)])
    l0, figure = bounds
    smallest = min(point.x for point in points)
    l0 = [max(value, smallest / 2) for value in l0]  # an interval below zero is no reason for an axis that is not log
    x_axis = axis_of(l0, start=_LEFT, stop=_RIGHT, may_be_logarithmic=True)
    return x_axis, axis_of(figure, start=_BOTTOM, stop=_TOP)


def _frame(x_axis: Axis, y_axis: Axis, title: str) -> list[Element]:
    parts = []
    for value, text in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(element("line", {"x1": _LEFT, "x2": _RIGHT, "y1": y, "y2": y, "class": "grid"}))
        parts.append(element("text", {"x": _LEFT - 6, "y": y + 4, "text-anchor": "end"}, text))
    for value, text in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(element("line", {"x1": x, "x2": x, "y1": _BOTTOM, "y2": _BOTTOM + 4, "class": "axis"}))
        parts.append(element("text", {"x": x, "y": _BOTTOM + 17, "text-anchor": "middle"}, text))
    parts.append(element("line", {"x1": _LEFT, "x2": _RIGHT, "y1": _BOTTOM, "y2": _BOTTOM, "class": "axis"}))
    scale = "logarithmic" if x_axis.logarithmic else "linear"
    below = {"x": _RIGHT, "y": _BOTTOM + 33, "text-anchor": "end", "class": "title"}
    parts.append(element("text", below, f"L0, latents per token, {scale} →"))
    parts.append(element("text", {"x": 4, "y": 12, "class": "title"}, f"↑ {title}, fraction"))
    return parts


def _line(front: Sequence[_Point], x_axis: Axis, y_axis: Axis) -> Element:
    spots = " ".join(f"{x_axis.place(point.x):.2f},{y_axis.place(point.y):.2f}" for point in front)
    return element("polyline", {"points": spots, "class": f"front {colour(front[0].place)}"})


def _error_bars(point: _Point, x_axis: Axis, y_axis: Axis) -> Element | None:
    x, y = x_axis.place(point.x), y_axis.place(point.y)
    path = ""
    if (interval := point.row.interval("l0")) is not None:
        ends = [x_axis.place(end) for end in interval]
        path += f"M{ends[0]:.2f} {y:.2f}H{ends[1]:.2f}"
        path += "".join(f"M{end:.2f} {y - _CAP:.2f}v{2 * _CAP}" for end in ends)
    if (interval := point.row.interval(point.key)) is not None:
        ends = [y_axis.place(end) for end in interval]
        path += f"M{x:.2f} {ends[0]:.2f}V{ends[1]:.2f}"
        path += "".join(f"M{x - _CAP:.2f} {end:.2f}h{2 * _CAP}" for end in ends)
    return element("path", {"d": path, "class": f"bars {colour(point.place)}"}) if path else None


def _marked(point: _Point, spot: tuple[float, float], title: str, *, is_on_front: bool) -> Element:
    figures = (("L0", "l0", point.x), (title, point.key, point.y))
    lines = [f"{name} {between(value, point.row.interval(key))}" for name, key, value in figures]
    said = "on the front" if is_on_front else "another has a figure at least as high at an L0 at most as large"
    return element(
        "g",
        {
            "class": "point",
            "data-dictionary": point.row.dictionary,
            "transform": f"translate({spot[0]:.2f} {spot[1]:.2f})",
        },
        element("title", {}, "\n".join([point.label, *lines, said])),
        marker(point.place, is_filled=is_on_front),
    )
