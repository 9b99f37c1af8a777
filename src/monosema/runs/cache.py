"""Caches from their options alone: what the command line calls."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from monosema.coders.sites import join_names
from monosema.core.errors import ConfigError
from monosema.core.progress import Progress
from monosema.data.cache import Manifest, export_arrow, export_npy, open_source, shuffle_cache
from monosema.data.cache.write import cache_rows
from monosema.runs.check import check_rows
from monosema.runs.config import CacheConfig
from monosema.runs.session import build_model, build_stream, build_tokens

ExportFormat = Literal["arrow", "npy"]
"""``arrow``: a ``datasets`` folder as sae-lens reads it; ``npy``: ``activations.npy`` and ``metadata.json``."""
Where = str | os.PathLike[str]


def make_cache(config: CacheConfig, out: Where, *, progress: bool | float = True) -> Manifest | None:
    """Load model and text, and write what their stream serves; None where other writers are not done."""
    check_rows(config.model, config.tokens, config.stream)
    shown = progress is not False
    model = build_model(config.model, progress=shown)
    tokens = build_tokens(config.tokens, model, progress=shown)
    stream = build_stream(config.stream, model, tokens, progress=shown)
    with _bar("cache", cache_rows(stream, config.cache.tokens), progress) as bar:
        return config.cache.write(stream, out, bar.advance)


def default_folder(config: CacheConfig) -> Path:
    """``activations/{text}/{model}/{hook}``, with a slash in a name as ``_``, and ``_{head}`` behind a head's site."""
    hooks = join_names((*config.stream.hook_names, *(config.stream.targets or ())))
    names = (config.tokens.source, config.model.source, re.sub(r"\[(\d+)\]", r"_\1", hooks))
    return Path("activations", *(name.replace(os.sep, "_").replace("/", "_") for name in names))


def shuffle(
    folder: Where, out: Where, *, seed: int, memory_bytes: int, shard_bytes: int, progress: bool | float = True
) -> Manifest:
    """``shuffle_cache`` with a bar."""
    with _bar("shuffle", 2 * open_source(folder).manifest.n_rows, progress) as bar:
        return shuffle_cache(
            folder, out, seed=seed, memory_bytes=memory_bytes, shard_bytes=shard_bytes, progress=bar.advance
        )


def export(folder: Where, out: Where, *, to: ExportFormat = "arrow", context_size: int | None = None) -> int:
    """Write a cache in another format; how many rows are left out, because they fill no context."""
    if to == "arrow":
        return export_arrow(open_source(folder), out, context_size=context_size)
    if context_size is not None:
        raise ConfigError("--context-size goes with --format arrow; an array has no contexts")
    export_npy(open_source(folder), out)
    return 0


def _bar(name: str, total: int, progress: bool | float) -> Progress:
    interval = 30.0 if isinstance(progress, bool) else progress
    return Progress(name, total, interval=interval, enabled=progress is not False)
