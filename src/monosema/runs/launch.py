"""A whole run from its config alone: what the command line calls."""

from __future__ import annotations

from pathlib import Path

from monosema.core.devices import choose_device
from monosema.core.errors import OutOfMemoryError, first_line, is_out_of_memory
from monosema.core.memory import free_memory
from monosema.core.progress import doing
from monosema.data.named_models import NamedModels
from monosema.runs.check import check_run
from monosema.runs.config import CacheSource, RunConfig
from monosema.runs.planning import less_memory
from monosema.runs.session import build_layout, build_models, build_stream, build_tokens, coder_for
from monosema.runs.training import TrainingResult, train
from monosema.training.resolve import check_training


def launch(config: RunConfig, out: Path, *, progress: bool | float = True) -> TrainingResult:
    """Load model (or models) and text, make stream and coder, train, save and evaluate; or train from a cache.

    What is wrong with the options is said before the model is loaded, where it can be, and before the text.
    """
    if config.cache is not None:
        return _launch_from_cache(config, config.cache, out, progress)
    device = None if config.model.device_map is not None else choose_device(config.model.device)
    free = None if device is None else free_memory(device)
    check_run(config)
    tokens = None
    try:
        shown = progress is not False
        models = build_models(config, progress=shown)
        named = NamedModels(models)
        coder = coder_for(config.coder, build_layout(config.stream, models), named.record()).to(named.first.device)
        check_training(coder, config.training, config.stream.batch_size)
        tokens = build_tokens(config.tokens, models, progress=shown)
        stream = build_stream(config.stream, models, tokens, progress=shown)
        return train(coder, stream, config.training, out=out, evaluation=config.evaluation, progress=progress)
    except OutOfMemoryError as error:
        raise OutOfMemoryError(f"{error}; {less_memory(config, tokens, free)}") from error
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory before the first step ({first_line(error):.200}); {less_memory(config, tokens, free)}"
        ) from error


def _launch_from_cache(config: RunConfig, options: CacheSource, out: Path, progress: bool | float) -> TrainingResult:
    device = choose_device(options.device)
    check_run(config)
    with doing("reading the cache", enabled=progress is not False):
        cache = options.build()
    coder = coder_for(config.coder, cache.layout, cache.record()).to(device)
    check_training(coder, config.training, options.batch_size)
    return train(
        coder,
        cache,
        config.training,
        out=out,
        evaluation=config.evaluation,
        progress=progress,
        start_at_other_sites=config.coder.start_at_other_sites,
    )
