"""Writing a cache: many sites in one pass, chunk by chunk, resumable, by one process or several."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError, FileError
from monosema.core.files import read_json, remove_leftovers, write_json
from monosema.data.cache.manifest import (
    MANIFEST,
    PLAN,
    CachePlan,
    Manifest,
    chunk_name,
    read_chunk,
    read_manifest,
    shard_name,
)
from monosema.data.cache.shards import DTYPES, CacheDtype, Shard, ShardRecord, write_shard
from monosema.data.chunks import ChunkContexts
from monosema.data.stream import ActivationStream

logger = logging.getLogger("monosema.data.cache")

SHARD_BYTES = 2**27
"""About the size of a shard: large enough to be read at a disk's sequential rate, small enough to mix many."""


def write_cache(
    stream: ActivationStream,
    folder: str | os.PathLike[str],
    *,
    tokens: int | None = None,
    dtype: CacheDtype = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    rank: int = 0,
    n_writers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Manifest | None:
    """Harvest what ``stream`` would serve in its first epoch into ``folder``; returns the manifest once all is there.

    A chunk of the stream is the window that rows are permuted in. Each shard and record is written whole or not at all,
    so a process killed at any moment is simply started again: chunks that are there are kept. Several processes with
    ``rank`` 0 to ``n_writers - 1`` write into one folder; the last to finish writes the manifest, the others return
    None.

    Args:
        stream: sites, text, seed and chunk size; nothing of it is consumed.
        tokens: rows wanted, all of the text by default; whole chunks are written.
        dtype: type to store; ``int8`` has a scale for each channel of each shard.
        shard_bytes: about the size of a shard.
        progress: is told the rows of each chunk that is done.

    Raises:
        ConfigError: options out of range; a cache in ``folder`` that was begun with others.
        FileError: not enough room on the disk (before anything is written), or it cannot be written.
        DataError: fewer tokens in the text than asked for, or activations that are not finite.
    """
    target = Path(folder)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not 0 <= rank < n_writers:
        raise ConfigError(f"rank must be at least 0 and below n_writers={n_writers}, got {rank}")
    kept = stream.split.usable_per_context()
    windows = _windows(stream, kept, tokens)
    n_rows = int(kept[torch.cat(windows)].sum())
    plan = CachePlan(stream.layout.reads, stream.layout.writes, dtype, len(windows), 1, stream.record())
    plan = replace(plan, shard_rows=max(1, shard_bytes // plan.shards.row_bytes))
    _begin(target, plan, n_rows)
    for number, window in enumerate(windows):
        if number % n_writers == rank and read_chunk(target, number) is None:
            _write_chunk(target, plan, stream, number, window)
        if progress is not None:
            progress(int(kept[window].sum()))
    return _finish(target, plan)


def _windows(stream: ActivationStream, kept: Tensor, tokens: int | None) -> list[Tensor]:
    """The contexts of each chunk, as many chunks as ``tokens`` need."""
    windows = list(stream.context_order(0).split(stream.chunk_size))
    if tokens is None:
        return windows
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, got {tokens}")
    reached = torch.stack([kept[window].sum() for window in windows]).cumsum(0)
    if tokens > int(reached[-1]):
        raise DataError(f"{tokens:,} tokens wanted, the text has {int(reached[-1]):,}; give more text, or lower tokens")
    return windows[: int((reached < tokens).sum()) + 1]


def _begin(folder: Path, plan: CachePlan, n_rows: int) -> None:
    """Make the folder, or go on with one of the same plan; refuse what the disk has no room for."""
    path = folder / PLAN
    if path.exists():
        begun, wanted = read_json(path), plan.plain()
        if not isinstance(begun, dict) or begun != wanted:
            begun = begun if isinstance(begun, dict) else {}
            different = [key for key in wanted if begun.get(key) != wanted[key]]
            raise ConfigError(
                f"{folder} holds a cache that was begun with other options ({', '.join(different)} differ); choose "
                "another folder, or delete this one"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no activation cache; choose another folder")
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.exists() else 0
    needed = max(0, n_rows * plan.shards.row_bytes - there)
    parent = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(parent).free
    logger.info(
        "%s rows of %d sites in %s: %.2f GiB on disk, %.2f GiB of it to be written, %.2f GiB free",
        f"{n_rows:,}",
        len(plan.shards.sites),
        plan.dtype,
        n_rows * plan.shards.row_bytes / 2**30,
        needed / 2**30,
        free / 2**30,
    )
    if needed > free:
        raise FileError(
            f"the cache needs {needed / 2**30:.2f} GiB more, {parent} has {free / 2**30:.2f} GiB free; free some, "
            "choose another place, lower tokens, or store int8"
        )
    if not path.exists():
        write_json(path, plan.plain())


def _write_chunk(folder: Path, plan: CachePlan, stream: ActivationStream, number: int, window: Tensor) -> None:
    ids = stream.split.contexts[window]
    chunk = stream.make_chunk(ChunkContexts(number, 0, 0, ids))
    places = (~stream.split.special_mask(ids)).nonzero()  # row by row, in the order of the chunk's rows
    order = chunk.order.cpu()
    origin = (ids[places[:, 0], places[:, 1]], window[places[:, 0]], places[:, 1])
    token_ids, contexts, positions = (each[order] for each in origin)
    records: list[ShardRecord] = []
    for start in range(0, len(order), plan.shard_rows):
        part = slice(start, start + plan.shard_rows)
        shard = Shard(chunk.rows[chunk.order[part]], token_ids[part], contexts[part], positions[part])
        records.append(write_shard(folder / shard_name(number, len(records)), plan.shards, shard))
    write_json(folder / chunk_name(number), [asdict(record) for record in records])


def _finish(folder: Path, plan: CachePlan) -> Manifest | None:
    """Write the manifest where every chunk is there."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    shards: list[ShardRecord] = []
    for number in range(plan.n_chunks):
        chunk = read_chunk(folder, number)
        if chunk is None:
            return None
        shards += chunk
    manifest = Manifest(plan, tuple(shards))
    remove_leftovers(folder)  # nobody writes any more
    write_json(folder / MANIFEST, manifest.plain())
    return manifest
