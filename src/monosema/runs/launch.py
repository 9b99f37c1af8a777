"""A whole run from its config alone: what the command line calls."""

from __future__ import annotations

from pathlib import Path

from monosema.core.devices import choose_device
from monosema.runs.config import RunConfig
from monosema.runs.session import build_coder, build_model, build_stream, build_tokens
from monosema.runs.training import TrainingResult, train


def launch(config: RunConfig, out: Path, *, progress: bool | float = True) -> TrainingResult:
    """Load model and text, make stream and coder, train, save and evaluate."""
    if config.model.device_map is None:
        choose_device(config.model.device)
    model = build_model(config.model)
    tokens = build_tokens(config.tokens, model)
    stream = build_stream(config.stream, model, tokens)
    coder = build_coder(config, stream).to(model.device)
    return train(coder, stream, config.training, out=out, evaluation=config.evaluation, progress=progress)
