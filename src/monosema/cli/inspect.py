"""``monosema inspect``: what is in this folder: a dictionary, a run, a sweep, a cache, packed tokens or features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from monosema.cli.options import add_logging, configure_logging, load_libraries
from monosema.cli.output import show


def run(arguments: Sequence[str]) -> int:
    """Parse, look, print."""
    parser = argparse.ArgumentParser(prog="monosema inspect", description=__doc__)
    parser.add_argument(
        "folder",
        help="folder of a run, a dictionary, several runs, a cache, tokens or features; or a hub repository",
    )
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    add_logging(parser)
    extra = parser.parse_args(list(arguments))
    configure_logging(extra)
    load_libraries("monosema.runs.describe")
    from monosema.runs.describe import describe

    show(describe(extra.folder, extra.name))
    return 0
