"""A whole run from its config alone: what the command line calls."""

from __future__ import annotations

import logging
from pathlib import Path

from monosema.core.devices import choose_device
from monosema.runs.config import RunConfig
from monosema.runs.session import build_coder, build_models, build_stream, build_tokens
from monosema.runs.training import TrainingResult, train

logger = logging.getLogger("monosema.runs")


def launch(config: RunConfig, out: Path, *, progress: bool | float = True) -> TrainingResult:
    """Load model (or models) and text, make stream and coder, train, save and evaluate."""
    if config.model.device_map is None:
        choose_device(config.model.device)
    models = build_models(config)
    tokens = build_tokens(config.tokens, models)
    stream = build_stream(config.stream, models, tokens)
    coder = build_coder(config, stream).to(stream.model.device)
    if config.other_models:
        logger.warning("no report: the evaluation on held-out text puts a dictionary into one model, not several")
    evaluation = False if config.other_models else config.evaluation
    return train(coder, stream, config.training, out=out, evaluation=evaluation, progress=progress)
