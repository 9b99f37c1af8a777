"""Reports of benchmarks as plain text and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from monosema.evaluation.report import labelled, plain_value, shown


def plain_fields(report: Any) -> dict[str, Any]:
    """The fields of a report, or a mapping of them, as JSON values; what is not finite becomes None, keys text."""
    values = (
        report if isinstance(report, Mapping) else {each.name: getattr(report, each.name) for each in fields(report)}
    )
    return {name: _text_keys(plain_value(value)) for name, value in values.items()}


def table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[float | int | str]], notes: Sequence[str] = ()
) -> str:
    """A title, columns as wide as their widest cell (the first to the left, numbers to the right), and notes."""
    cells = [list(heads), *([shown(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n".join([title, *lines, *labelled("note", notes)])


def _text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _text_keys(each) for key, each in value.items()}
    return [_text_keys(each) for each in value] if isinstance(value, list) else value
