"""Writing a cache: many sites in one pass, chunk by chunk, resumable, by one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace

from torch import Tensor

from monosema.core.config import differences
from monosema.core.errors import ConfigError, DataError
from monosema.core.logs import get_logger
from monosema.core.words import counted
from monosema.data.cache.folders import CacheFolder, open_folder, require_room, write_json
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
from monosema.data.cache.shards import DTYPES, SHARD_BYTES, CacheDtype, Shard, ShardLayout, ShardRecord, write_shard
from monosema.data.chunks import ChunkContexts
from monosema.data.contexts import contexts_needed
from monosema.data.order import indexed
from monosema.data.outliers import RECORDED
from monosema.data.stream import ActivationStream

logger = get_logger("monosema.data.cache")


def write_cache(
    stream: ActivationStream,
    folder: str | os.PathLike[str],
    *,
    tokens: int | None = None,
    dtype: CacheDtype = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    rank: int = 0,
    n_writers: int = 1,
    progress: Callable[[int], None] = lambda n_rows: None,
) -> Manifest | None:
    """Collect what ``stream`` would serve in its first epoch into ``folder``; returns the manifest once all is there.

    A chunk of the stream is the window that rows are permuted in. Every row is written, those of large norm too:
    ``ActivationCache`` leaves them out when it reads. Each shard and record is written whole or not at all,
    so a process killed at any moment is simply started again: chunks that are there are kept. Several processes with
    ``rank`` 0 to ``n_writers - 1`` write into one folder; the last to finish writes the manifest, the others return
    None.

    Args:
        folder: a path, or an fsspec URL (``s3://bucket/cache``), where a file is one object that is put whole.
        stream: sites, text, seed and chunk size; nothing of it is consumed.
        tokens: rows wanted, all of the text by default; whole contexts are written, the last one being the one that
            reaches them.
        dtype: type to store; ``int8`` has a scale for each channel of each shard.
        shard_bytes: about the size of a shard.
        progress: is told the rows of every forward pass, and of each chunk that is there already or another writer's.

    Raises:
        ConfigError: options out of range; a cache in ``folder`` that was begun with others.
        FileError: not enough room on the disk (before anything is written), or it cannot be written.
        DataError: fewer tokens in the text than asked for, or activations that are not finite.
    """
    target = open_folder(folder)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not 0 <= rank < n_writers:
        raise ConfigError(f"rank must be at least 0 and below n_writers={n_writers}, got {rank}")
    kept = _kept(stream)
    chosen = _chosen(stream, kept, tokens)
    windows, n_rows = chosen.split(stream.chunk_size), int(kept[chosen].sum())
    record = {name: value for name, value in stream.record().items() if name not in RECORDED}  # every row is written
    plan = CachePlan(stream.layout.reads, stream.layout.writes, dtype, len(windows), 1, record, len(chosen))
    plan = replace(plan, shard_rows=plan.shards.rows_in(shard_bytes))
    begin(target, plan, n_rows * plan.shards.row_bytes)
    for number, window in enumerate(windows):
        if number % n_writers == rank and read_chunk(target, number) is None:
            _write_chunk(target, plan, stream, number, window, progress)
        else:
            progress(int(kept[window].sum()))
    return finish(target, plan)


def cache_bytes(stream: ActivationStream, tokens: int | None, dtype: CacheDtype) -> int:
    """Bytes on disk of what ``write_cache`` writes of ``stream``, headers and int8's scales left out.

    Raises ``DataError`` where the text has fewer than ``tokens``.
    """
    sites = stream.layout.reads if stream.layout.is_autoencoder else stream.layout.reads + stream.layout.writes
    return cache_rows(stream, tokens) * ShardLayout(sites, dtype).row_bytes


def cache_rows(stream: ActivationStream, tokens: int | None) -> int:
    """Rows that ``write_cache`` writes of ``stream``; ``DataError`` where the text has fewer than ``tokens``."""
    kept = _kept(stream)
    return int(kept[_chosen(stream, kept, tokens)].sum())


def _kept(stream: ActivationStream) -> Tensor:
    """Rows that each context of the text gives."""
    return indexed(stream.split).rows_in_contexts()


def _chosen(stream: ActivationStream, kept: Tensor, tokens: int | None) -> Tensor:
    """The contexts that are written, in the order of reading: as many as ``tokens`` need."""
    order = stream.context_order(0)
    if tokens is None:
        return order
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, got {tokens}")
    if tokens > int(kept.sum()):
        raise DataError(
            f"{counted(tokens, 'token')} wanted, the text has {int(kept.sum()):,}; give more text, or lower tokens"
        )
    return order[: contexts_needed(kept[order], tokens)]


def begin(folder: CacheFolder, plan: CachePlan, n_bytes: int) -> None:
    """Make the folder, or go on with one of the same plan; refuse ``n_bytes`` that the disk has no room for."""
    names = folder.names()
    if PLAN in names:
        begun, wanted = folder.read_json(PLAN), plan.plain()
        if isinstance(begun, dict) and "n_contexts" not in begun:  # of an older version
            wanted.pop("n_contexts", None)
        if not isinstance(begun, dict) or begun != wanted:
            different = differences(begun, wanted)[:5] if isinstance(begun, dict) else ["all of them"]
            raise ConfigError(
                f"{folder} holds a cache that was begun with other options ({'; '.join(different)}); choose "
                "another folder, or delete this one"
            )
    elif names:
        raise ConfigError(f"{folder} is not empty and holds no activation cache; choose another folder")
    free = folder.free_bytes()
    there = 0 if free is None else sum(folder.size(name) or 0 for name in names if name.endswith(".safetensors"))
    needed = max(0, n_bytes - there)
    logger.info(
        "%s: %.2f GiB of %s, %.2f GiB of it to be written%s",
        folder,
        n_bytes / 2**30,
        plan.dtype,
        needed / 2**30,
        "" if free is None else f", {free / 2**30:.2f} GiB free",
    )
    require_room(folder, needed)
    if PLAN not in names:
        write_json(folder, PLAN, plan.plain())


def _write_chunk(
    folder: CacheFolder,
    plan: CachePlan,
    stream: ActivationStream,
    number: int,
    window: Tensor,
    progress: Callable[[int], None],
) -> None:
    split = indexed(stream.split)
    text = split.part(window)
    chunk = stream.make_chunk(ChunkContexts(number, {}, text), progress)
    places = split.row_mask(window).nonzero()  # row by row, in the order of the chunk's rows
    origin = (text.ids[places[:, 0], places[:, 1]], window[places[:, 0]], places[:, 1])
    write_permuted(folder, plan, number, Shard(chunk.rows, *origin), chunk.order)


def write_permuted(folder: CacheFolder, plan: CachePlan, number: int, rows: Shard, order: Tensor) -> None:
    """Write ``rows`` in ``order`` as the shards of chunk ``number``, and then what says that it is whole.

    Threads sum and write two shards while the next is put together: memory for three of them.
    """
    with ThreadPoolExecutor(2) as threads:
        writing: list[Future[ShardRecord]] = []
        for place, start in enumerate(range(0, len(order), plan.shard_rows)):
            shard = rows.take(order[start : start + plan.shard_rows])
            if place >= 2:
                writing[place - 2].result()
            writing.append(threads.submit(write_shard, folder, shard_name(number, place), plan.shards, shard))
    records = [each.result() for each in writing]
    write_json(folder, chunk_name(number), [asdict(record) for record in records])


def finish(folder: CacheFolder, plan: CachePlan) -> Manifest | None:
    """Write the manifest where every chunk is there."""
    if folder.exists(MANIFEST):
        return read_manifest(folder)
    shards: list[ShardRecord] = []
    for number in range(plan.n_chunks):
        chunk = read_chunk(folder, number)
        if chunk is None:
            return None
        shards += chunk
    manifest = Manifest(plan, tuple(shards))
    folder.remove_leftovers()  # nobody writes any more
    write_json(folder, MANIFEST, manifest.plain())
    return manifest
