"""``monosema evaluate``: measure a dictionary on held-out text, as it was saved."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monosema.cli.options import parse
from monosema.runs.config import EvaluationOptions


def run(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    parser = argparse.ArgumentParser(prog="monosema evaluate", description=__doc__, add_help=False)
    parser.add_argument("folder", nargs="?", help="run folder, dictionary folder, or hub repository")
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    parser.add_argument("--text", help="evaluate on this text instead of the recorded one")
    parser.add_argument("--model", help="evaluate on this model instead of the recorded one")
    parser.add_argument("--out", type=Path, help="also write the report as JSON")
    parsed = parse(EvaluationOptions, arguments, parser)
    extra, options = parsed.extra, parsed.config
    if extra.folder is None:
        parser.error("name the folder of a run or of a dictionary")
    from monosema.core.files import write_json
    from monosema.evaluation import evaluate
    from monosema.runs import open_session

    overrides = {key: value for key, value in (("text", extra.text), ("model", extra.model)) if value is not None}
    session = open_session(extra.folder, extra.name, **overrides)
    report = evaluate(
        session.coder,
        session.model,
        session.tokens,
        n_tokens=options.n_tokens,
        n_loss_tokens=options.n_loss_tokens,
        ablation=options.ablation,
        progress=not extra.quiet,
    )
    print(report)
    if extra.out is not None:
        write_json(extra.out, report.to_dict())
    return 0
