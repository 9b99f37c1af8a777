"""The table of main figures, why some are not there, and what each dictionary was measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element

from monosema.core.printable import printable
from monosema.evaluation.page.markers import named
from monosema.evaluation.page.markup import element
from monosema.evaluation.page.rows import Ground, Row
from monosema.evaluation.report import Ablation, shown
from monosema.metrics.figures import FIGURES, OF_ABLATION

_GROUPS = (
    "Sparsity",
    "CE recovered",
    "Reconstruction",
    "Cross-entropy, nats per token",
    "Predictions",
    "Weights",
    "Tokens",
)
"""Headings of columns, in order."""
_ABLATIONS: dict[Ablation, str] = {"zero": "zero", "mean": "its mean"}
"""What is in the site's place, by ablation."""


def _columns() -> dict[str, tuple[tuple[str, str, str], ...]]:
    """By group, the name in the report, heading and meaning of each figure that has a column."""
    every = [(name, row.column) for name, row in FIGURES.items() if row.column is not None]
    for name, row in OF_ABLATION.items():
        for ablation, what in _ABLATIONS.items():
            if row.column is not None:
                words = {"ablation": ablation, "Ablation": ablation.capitalize(), "what": what}
                heading, tip = row.column.heading.format(**words), row.column.tip.format(**words)
                every.append((f"ablations/{ablation}/{name}", replace(row.column, heading=heading, tip=tip)))
    every.sort(key=lambda each: each[1].rank)
    return {
        group: tuple((name, column.heading, column.tip) for name, column in every if column.group == group)
        for group in _GROUPS
    }


COLUMNS = _columns()
"""By group, the name in the report, heading and meaning of each figure."""
_OPENING = {columns[0][0] for columns in COLUMNS.values()}
"""Figures with a line to their left: each the first of a group."""

_OVERLAPS = {
    "none": "none of them trained on",
    "same tokens": "trained on these very tokens",
    "unknown": "whether trained on them is not known",
}


def figures_table(rows: Sequence[Row], found: Sequence[Ground]) -> tuple[Element, list[Element]]:
    """The table, and the numbered reasons of figures that are not there, under it."""
    reasons: dict[str, int] = {}
    first = element("tr", {}, element("td"), *(_group_heading(group, len(each)) for group, each in COLUMNS.items()))
    name = element("th", {"scope": "col", "data-key": "name"}, "Dictionary")
    second = element("tr", {}, name, *(_heading(*each) for group in COLUMNS.values() for each in group))
    body = [_line(row, found, reasons) for row in rows]
    table = element("table", {"id": "figures"}, element("thead", {}, first, second), element("tbody", {}, *body))
    notes = [element("li", {"value": number}, reason) for reason, number in reasons.items()]
    return table, notes


def provenance_table(rows: Sequence[Row], names: Sequence[str]) -> Element:
    """What was read, written and evaluated on, and what a reader must know: a line for all of whom this is the same.
    ``names`` are those given."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in {row.dictionary: row for row in rows}.values():
        alike.setdefault(_provenance(row), []).append(printable(names[row.dictionary]))
    headings = ("Dictionaries", "Model", "Site", "Tokens", "Ablations", "Notes")
    lines = [
        element("tr", {}, *(_cell_of_lines(heading, text) for heading, text in zip(headings, texts, strict=True)))
        for texts in (("\n".join(own), *shared) for shared, own in alike.items())
    ]
    head = element("tr", {}, *(element("th", {"scope": "col"}, heading) for heading in headings))
    return element("table", {"id": "provenance"}, element("thead", {}, head), element("tbody", {}, *lines))


def _group_heading(group: str, width: int) -> Element:
    return element("th", {"scope": "colgroup", "colspan": width, "class": "opens"}, group)


def _heading(key: str, heading: str, tip: str) -> Element:
    return element("th", {"scope": "col", "data-key": key, "title": tip, "class": _opens(key)}, heading)


def _opens(key: str) -> str | None:
    """Its class, if it has one."""
    return "opens" if key in _OPENING else None


def _line(row: Row, found: Sequence[Ground], reasons: dict[str, int]) -> Element:
    of_model = element("small", {}, f"model {printable(row.model)}") if row.model else None
    place = found.index(row.ground(of_losses=bool(row.model)))
    head = {"scope": "row", "data-value": f"{row.name} {row.model}"}
    cells = [_cell(row, key, reasons) for group in COLUMNS.values() for key, _, _ in group]
    return element(
        "tr", {"data-dictionary": row.dictionary}, element("th", head, named(place, row.name), of_model), *cells
    )


def _cell(row: Row, key: str, reasons: dict[str, int]) -> Element:
    value = row.value(key)
    if value is None or math.isnan(value):
        reason = row.reason(key)
        number = reasons.setdefault(reason, len(reasons) + 1)
        attributes = {"class": " ".join(filter(None, ("none", _opens(key)))), "title": reason}
        return element("td", attributes, "—", element("sup", {}, str(number)))
    interval = row.interval(key)
    ends = None if interval is None else element("small", {}, f"{_digits(interval[0])} – {_digits(interval[1])}")
    return element("td", {"data-value": repr(value), "class": _opens(key)}, _digits(value), ends)


def _digits(value: float) -> str:
    """Five significant digits, as far as they are decimals; counts whole."""
    if isinstance(value, int) or abs(value) >= 1e4 or 0 < abs(value) < 1e-3:
        return shown(value)
    return f"{value + 0.0:,.{5 - len(str(int(abs(value))))}f}"


def _cell_of_lines(heading: str, text: str) -> Element:
    return element("td", {"data-heading": heading}, *(element("div", {}, line) for line in text.split("\n")))


def _provenance(row: Row) -> tuple[str, ...]:
    """Model, site, tokens, ablations and notes, in lines."""
    report = row.report
    site = report.hook_name or "not recorded"
    if report.hook_name_out != report.hook_name:
        site += f" → {report.hook_name_out}"
    tokens = [f"{report.n_tokens:,} of {report.split.replace('heldout', 'held-out') or 'a split not recorded'}"]
    if report.n_documents is not None:
        tokens.append(f"{report.n_documents:,} documents")
    if report.n_special_positions:
        tokens.append(f"{report.n_special_positions:,} special positions left out")
    tokens.append(_OVERLAPS[report.overlap])
    if report.tokens_fingerprint:
        tokens.append(f"sha256 {report.tokens_fingerprint[:16]}…")
    ablations = ", ".join(row.losses.ablations or ()) or report.ablation or "none"
    notes = "\n".join(report.notes) or "none"
    return tuple(map(printable, (report.model_name or "none run", site, "\n".join(tokens), ablations, notes)))
