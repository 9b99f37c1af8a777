"""Several reports beside each other: a table for the terminal, and CSV with every figure and its interval."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from typing import Any, final

from monosema.core.files import write_atomically
from monosema.core.printable import escaped, terminal_line
from monosema.evaluation.report import Report, shown

_SHOWN = ("d_sae", "l0", "fve", "ce_loss_score", "kl_score", "norm_ratio", "dead_fraction", "max_decoder_cosine")


@final
class Reports(dict[str, Report]):
    """The reports of several dictionaries by name: a ``dict`` that prints as the table of ``comparison``."""

    def __repr__(self) -> str:
        return comparison(self)

    def _repr_html_(self) -> str:
        """The same table for notebooks: static HTML, everything escaped."""
        head, *rows = _cells(self)
        columns = "".join(f'<th scope="col">{escaped(name)}</th>' for name in head)
        lines = (
            f'<tr><th scope="row">{escaped(name)}</th>{"".join(f"<td>{escaped(value)}</td>" for value in values)}</tr>'
            for name, *values in rows
        )
        return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def comparison(reports: Mapping[str, Report]) -> str:
    """A line for each report, by name, with the figures that dictionaries are usually compared by."""
    rows = _cells(reports)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _cells(reports: Mapping[str, Report]) -> list[list[str]]:
    """The head and a row for each report, as text."""
    rows = [["", *_SHOWN]]
    for name, report in reports.items():
        values = [getattr(report, column) for column in _SHOWN]
        rows.append([terminal_line(name), *("" if value is None else shown(value) for value in values)])
    return rows


def write_csv(reports: Mapping[str, Report], path: str | os.PathLike[str]) -> None:
    """A line for each report: its name, then every figure that is one number or word, then ``NAME low`` and
    ``NAME high`` for the ends of intervals. What was not measured, or is not defined, is empty."""
    lines: list[dict[str, Any]] = []
    for name, report in reports.items():
        plain = report.to_dict()
        figures = {key: plain[key] for key in plain if key != "version" and not isinstance(plain[key], dict | list)}
        for ablation, losses in (plain["ablations"] or {}).items():
            figures |= {f"ablations/{ablation}/{key}": value for key, value in losses.items()}
        for key, (low, high) in report.intervals.items():
            figures |= {f"{key} low": low, f"{key} high": high}
        words = {"name": name, **figures}
        lines.append({terminal_line(key): _cell(value) for key, value in words.items()})
    text = io.StringIO()
    columns = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(path, text.getvalue())


def _cell(value: Any) -> Any:
    """Names may be those of a file: what cannot be seen is shown by name, also to those who print the table."""
    return terminal_line(value) if isinstance(value, str) else value
