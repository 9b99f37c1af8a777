"""``monosema evaluate``: measure a dictionary on held-out text, as it was saved."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monosema.cli.options import parse
from monosema.core.errors import ConfigError
from monosema.runs.config import EvaluationOptions

_NAMED_MODEL = re.compile(r"(\w[\w-]*)=(.+)")


def run(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    parser = argparse.ArgumentParser(prog="monosema evaluate", description=__doc__, add_help=False)
    parser.add_argument("folder", nargs="?", help="run folder, dictionary folder, or hub repository")
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    parser.add_argument("--text", help="evaluate on this text instead of the recorded one")
    parser.add_argument(
        "--model",
        action="append",
        help="evaluate on this model instead of the recorded one; of several, NAME=MODEL, once for each to change",
    )
    parser.add_argument("--out", type=Path, help="also write the report as JSON")
    parsed = parse(EvaluationOptions, arguments, parser)
    extra, options = parsed.extra, parsed.config
    if extra.folder is None:
        parser.error("name the folder of a run or of a dictionary")
    from monosema.core.files import write_json
    from monosema.evaluation import evaluate
    from monosema.runs import open_session

    session = open_session(extra.folder, extra.name, **_overrides(extra))
    report = evaluate(
        session.coder,
        session.models,
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


def _overrides(extra: argparse.Namespace) -> dict[str, Any]:
    """What is given in place of what the dictionary recorded."""
    overrides = {} if extra.text is None else {"text": extra.text}
    if extra.model is not None:
        pairs = [_NAMED_MODEL.fullmatch(given) for given in extra.model]
        named = {pair[1]: pair[2] for pair in pairs if pair is not None}
        if len(extra.model) > 1 and len(named) < len(extra.model):
            raise ConfigError(f"--model: give one model, or NAME=MODEL each, got {' '.join(extra.model)}")
        overrides["model"] = named or extra.model[0]
    return overrides
