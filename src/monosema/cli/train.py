"""``monosema train``: train a dictionary on a language model; the same command resumes it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from monosema.cli.kinds import Choices
from monosema.cli.options import load_libraries, parse
from monosema.cli.output import show
from monosema.coders.activations.registry import activation_kinds
from monosema.runs.config import CacheSource, RunConfig
from monosema.training.terms import FineTuning, LevelsConfig, Revive, SparseConnection, Sparsity


def choices() -> Choices:
    """The options of a run that hold one of several configs."""
    return {
        "cache": {"CacheSource": CacheSource, "none": None},
        "coder.activation": activation_kinds(),
        "training.sparsity": {kind.__name__: kind for kind in get_args(Sparsity)} | {"none": None},
        "training.levels": {kind.__name__: kind for kind in get_args(LevelsConfig)} | {"none": None},
        "training.revive": {kind.__name__: kind for kind in get_args(Revive)} | {"none": None},
        "training.finetuning": {"FineTuning": FineTuning, "none": None},
        "training.sparse_connection": {"SparseConnection": SparseConnection, "none": None},
    }


def run(arguments: Sequence[str]) -> int:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(prog="monosema train", description=__doc__, add_help=False)
    parser.add_argument("--out", type=Path, help="run folder (required to train)")
    parser.add_argument("--progress-every", type=float, default=30.0, help="seconds between lines of progress")
    parsed = parse(RunConfig, arguments, parser, choices())
    if parsed.extra.out is None:
        parser.error("--out is required: the folder for config, checkpoints, dictionary and report")
    load_libraries("monosema.runs.launch")
    from monosema.runs.launch import launch

    progress = False if parsed.extra.quiet else parsed.extra.progress_every
    result = launch(parsed.config, parsed.extra.out, progress=progress)
    if result.report is not None:
        from monosema.evaluation import short_report

        show(short_report(result.report))
        show(f"every figure: {result.folder}/report.json")
    show(f"dictionary: {result.folder}/coder")
    return 0
