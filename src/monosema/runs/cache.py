"""A cache from its config alone: what the command line calls."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from monosema.core.progress import Progress
from monosema.data.cache import Manifest, write_cache
from monosema.runs.check import check_rows
from monosema.runs.config import CacheConfig
from monosema.runs.session import build_model, build_stream, build_tokens


def make_cache(config: CacheConfig, out: Path, *, progress: bool | float = True) -> Manifest | None:
    """Load model and text, and write what their stream serves; None where other writers are not done."""
    check_rows(config.model, config.tokens, config.stream)
    model = build_model(config.model)
    tokens = build_tokens(config.tokens, model)
    stream = build_stream(config.stream, model, tokens)
    wanted = config.cache.tokens
    interval = 30.0 if isinstance(progress, bool) else progress
    total = (stream.n_rows or 0) if wanted is None else wanted
    with Progress("cache", total, interval=interval, enabled=progress is not False) as bar:
        return write_cache(stream, out, **asdict(config.cache), progress=bar.advance)
