"""A whole run from its config alone: what the command line calls."""

from __future__ import annotations

from pathlib import Path

from monosema.core.devices import choose_device
from monosema.runs.config import RunConfig
from monosema.runs.session import build_coder, build_models, build_stream, build_tokens
from monosema.runs.training import TrainingResult, train


def launch(config: RunConfig, out: Path, *, progress: bool | float = True) -> TrainingResult:
    """Load model (or models) and text, make stream and coder, train, save and evaluate."""
    if config.model.device_map is None:
        choose_device(config.model.device)
    models = build_models(config)
    tokens = build_tokens(config.tokens, models)
    stream = build_stream(config.stream, models, tokens)
    coder = build_coder(config, stream).to(stream.model.device)
    return train(coder, stream, config.training, out=out, evaluation=config.evaluation, progress=progress)
