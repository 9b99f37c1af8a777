"""``monosema plan``: what ``monosema train`` with the same options needs, and how long it takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monosema.cli.options import load_libraries, parse
from monosema.cli.output import show, show_error
from monosema.cli.train import choices
from monosema.core.plain import dump_json
from monosema.runs.config import RunConfig


def run(arguments: Sequence[str]) -> int:
    """Parse, plan, print; 2 where the run does not fit."""
    parser = argparse.ArgumentParser(prog="monosema plan", description=__doc__, add_help=False)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure; 0 loads no weights")
    parser.add_argument("--out", type=Path, default=Path(), help="where the run folder would be")
    parser.add_argument(
        "--cache-type",
        nargs="?",
        const="bfloat16",
        help="count an activation cache of the run's tokens too, in this type",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parsed = parse(RunConfig, arguments, parser, choices())
    load_libraries("monosema.runs.planning")
    from monosema.runs.planning import plan

    extra = parsed.extra
    planned = plan(
        parsed.config, seconds=extra.seconds, out=extra.out, cache=extra.cache_type, progress=not extra.quiet
    )
    show(dump_json(planned.to_dict(), indent=2) if extra.json else planned)
    for problem in planned.problems:
        show_error(f"monosema plan: {problem}")
    return 2 if planned.problems else 0
