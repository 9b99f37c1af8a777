"""The demo: the main job on the embedded model, timed part by part."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from monosema.core.errors import FileError
from monosema.core.progress import doing
from monosema.evaluation import Report, short_report
from monosema.features import collect_features
from monosema.runs.config import CoderOptions, EvaluationOptions, RunConfig
from monosema.runs.features_page import page_figures
from monosema.runs.session import build_coder, build_model, build_stream, build_tokens
from monosema.runs.training import train

N_TOKENS = 110_000
"""Held-out tokens read for the figures and for the features page."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    report: Report
    """Held-out figures of the dictionary as saved."""
    folder: Path
    """The run folder."""
    page: Path
    """The features page."""
    seconds: dict[str, float]
    """Wall time of each part."""

    def __str__(self) -> str:
        times = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.seconds.items())
        return f"{short_report(self.report)}\n\ntime        {times}\nrun folder  {self.folder}\nfeatures    {self.page}"


def run_demo(out: str | os.PathLike[str], *, progress: bool = True) -> DemoResult:
    """Train 4,096 latents on ``blocks.2.hook_resid_post`` of the embedded model, evaluate, write ``features.html``."""
    config = RunConfig(coder=CoderOptions(d_sae=4096), evaluation=EvaluationOptions(n_tokens=N_TOKENS))
    seconds: dict[str, float] = {}
    last = time.monotonic()

    def mark(part: str) -> None:
        nonlocal last
        now = time.monotonic()
        seconds[part], last = now - last, now

    model = build_model(config.model, progress=progress)
    tokens = build_tokens(config.tokens, model, progress=progress)
    stream = build_stream(config.stream, model, tokens, progress=progress)
    coder = build_coder(config, stream)
    mark("start")
    result = train(coder, stream, config.training, out=out, evaluation=config.evaluation, progress=progress)
    if result.report is None or result.folder is None:
        raise FileError(f"the run in {out} has no report")
    mark("train and evaluate")
    store = collect_features(result.coder, model, tokens, n_tokens=N_TOKENS, progress=progress)
    page = result.folder / "features.html"
    with doing("writing the features page", enabled=progress):
        store.dashboard(page, figures=page_figures(result.folder, store))
    mark("features")
    return DemoResult(result.report, result.folder, page, seconds)
