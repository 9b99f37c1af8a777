"""From reports to the page: its parts, made by the files beside this one, in the places ``body.html`` has for them."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping

from monosema.core.errors import ConfigError
from monosema.core.files import write_atomically
from monosema.core.page import assembled, asset, filled
from monosema.core.words import counted
from monosema.evaluation.page.curves import curves
from monosema.evaluation.page.densities import densities
from monosema.evaluation.page.latents import COLUMNS, latents_arrays, latents_header
from monosema.evaluation.page.markers import legend
from monosema.evaluation.page.markup import element, written
from monosema.evaluation.page.rows import grounds, rows_of
from monosema.evaluation.page.tables import figures_table, provenance_table
from monosema.evaluation.report import Report


def write_page(reports: Mapping[str, Report], path: str | os.PathLike[str]) -> None:
    """One HTML file that compares dictionaries by their reports, under the names given, and loads nothing.

    It has a table of the main figures with 95 % intervals, FVE and CE recovered over L0 with their Pareto fronts,
    firing densities, the table of all latents, and what was measured on what. Fronts are of dictionaries with one
    model, site written and tokens. Reports read by ``Report.load`` have no table of latents; the page then says so.

    Raises ``ConfigError`` without a report, ``FileError`` where ``path`` cannot be written.
    """
    if not reports:
        raise ConfigError("no report given; a page compares one or more, by name")
    rows = rows_of(reports)
    found = grounds(rows)
    table, reasons = figures_table(rows, found)
    names = [next(row.name for row in rows if row.dictionary == number) for number in range(len(reports))]
    title = names[0] if len(names) == 1 else f"{counted(len(names), 'dictionary', 'dictionaries')} compared"
    package = __package__
    body = filled(
        asset(package, "body.html"),
        {
            "title": html.escape(title),
            "figures": written(table),
            "reasons": written(element("ol", {"class": "reasons hint"}, *reasons)) if reasons else "",
            "legend": written(legend(found)),
            "curves": written(*curves(rows, found)),
            "densities": written(*densities(rows, found)),
            "provenance": written(provenance_table(rows, list(reports))),
        },
    )
    page = assembled(
        title=title,
        body=body,
        styles=[asset(package, "page.css")],
        scripts=[asset(package, "page.js")],
        header={"dictionaries": latents_header(names, reports), "columns": COLUMNS},
        arrays=latents_arrays(reports),
    )
    write_atomically(path, page)
