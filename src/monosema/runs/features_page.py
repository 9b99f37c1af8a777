"""What a run's folder says that belongs on the page of its features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monosema.core.errors import FileError
from monosema.core.files import read_json
from monosema.evaluation import Report
from monosema.features import FeatureStore
from monosema.metrics.figures import FIGURES
from monosema.runs.held_config import held_config

DEFAULT_TOKENS = 200_000
"""Held-out tokens read where no run says how many it was evaluated on."""


def tokens_evaluated(folder: str | os.PathLike[str]) -> int | None:
    """How many held-out tokens the run in ``folder`` is evaluated on (None for all), so that features read the same."""
    match held_config(Path(folder)):
        case {"evaluation": {"n_tokens": int() | None as n_tokens}} if not isinstance(n_tokens, bool):
            return n_tokens
    return DEFAULT_TOKENS


def page_figures(folder: str | os.PathLike[str], store: FeatureStore) -> dict[str, str | float | None]:
    """Name and length of the run in ``folder``, and its report's figures unless they are of another text or model.

    The share of dead latents is not among them: the page counts those it shows.
    """
    home = Path(folder)
    figures: dict[str, str | float | None] = {}
    summary = _summary(home)
    if isinstance(name := summary.get("name"), str):
        figures["run"] = name
    if isinstance(tokens := summary.get("tokens"), int):
        figures["trained on"] = f"{tokens:,} tokens"
    if (file := home / "report.json").is_file():
        report, read = Report.load(file), store.provenance
        same_text = report.tokens_fingerprint in (None, read.tokens_fingerprint)
        if same_text and report.model_name in (None, read.model):
            figures |= {FIGURES[name].label: getattr(report, name) for name in ("fve", "ce_loss_score", "l0")}
    return figures


def _summary(home: Path) -> dict[str, Any]:
    """``summary.json``; empty where there is none that can be read."""
    file = home / "summary.json"
    try:
        found = read_json(file) if file.is_file() else {}
    except FileError:
        return {}
    return found if isinstance(found, dict) else {}
