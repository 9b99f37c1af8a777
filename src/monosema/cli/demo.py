"""``monosema demo``: a dictionary on the embedded model, its figures and its features page, offline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monosema.cli.options import add_logging, configure_logging, load_libraries
from monosema.cli.output import show


def run(arguments: Sequence[str]) -> int:
    """Parse, run the demo, print."""
    parser = argparse.ArgumentParser(prog="monosema demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default runs/demo)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_logging(parser)
    extra = parser.parse_args(list(arguments))
    configure_logging(extra)
    load_libraries("monosema.runs.demo")
    from monosema.runs.demo import run_demo

    result = run_demo(extra.out, progress=not extra.quiet)
    show(result)
    if extra.open:
        import webbrowser

        webbrowser.open(result.page.absolute().as_uri())
    return 0
