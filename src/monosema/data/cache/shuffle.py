"""The rows of a whole cache in another order, in bounded memory: dealt to buckets by the seed, each bucket permuted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from monosema.core.errors import ConfigError
from monosema.core.logs import get_logger
from monosema.core.seeds import random_stream
from monosema.data.cache.folders import CacheFolder, open_folder, write_json
from monosema.data.cache.manifest import MANIFEST, CachePlan, Manifest, read_chunk, read_records
from monosema.data.cache.opening import open_source
from monosema.data.cache.shards import ORIGIN, SHARD_BYTES, Shard, ShardLayout, ShardRecord, read_shard, write_shard
from monosema.data.cache.sources import ShardSource, read_whole
from monosema.data.cache.write import begin, finish, write_permuted

logger = get_logger("monosema.data.cache")

MEMORY_BYTES = 2**32
"""For the rows that are in hand, by default."""


def shuffle_cache(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the rows of the cache in ``folder`` to ``out`` in an order drawn over all of them, origins carried along.

    Every row is as likely in any place: the seed deals each to one of as many buckets as are needed for one to fit into
    memory, and each bucket is permuted. Needs room for the cache twice, once for the dealt rows, which go in the end.
    The same call goes on with what was interrupted, killed even. Rows keep their bits, but for int8: its scales are
    those of a file, and a value moves by half a step of its new file's scale at most.

    Args:
        folder: a cache, or another system's folder that ``ActivationCache`` reads.
        seed: decides the order.
        memory_bytes: memory for the rows that are in hand.
        shard_bytes: about the size of a new shard.
        progress: is told the rows of each step; every row counts twice.

    Raises:
        ConfigError: options out of range; ``out`` holds something else, or a shuffle with other options.
        FileError: ``folder`` holds no whole cache, or one that is damaged; or the disk has not enough room.
    """
    if memory_bytes < 1 or shard_bytes < 1:
        raise ConfigError(f"memory_bytes and shard_bytes must be at least 1, got {memory_bytes} and {shard_bytes}")
    source, target = open_source(folder), open_folder(out)
    manifest, told = source.manifest, progress or (lambda n_rows: None)
    held = max(1, memory_bytes // 2 // _kept(manifest.plan.shards).row_bytes)  # they are joined: twice for a moment
    plan = _plan(manifest, seed, held, shard_bytes)
    begin(target, plan, (1 if target.exists(MANIFEST) else 2) * manifest.n_rows * plan.shards.row_bytes)
    windows = list(_windows(manifest.shards, held))
    missing = [bucket for bucket in range(plan.n_chunks) if read_chunk(target, bucket) is None]
    dealt: list[ShardRecord] = []
    for number, records in enumerate(windows):
        if missing:
            dealt += _deal(source, target, plan, seed, number, records)
        told(sum(record.n_rows for record in records))
    told(manifest.n_rows * (plan.n_chunks - len(missing)) // plan.n_chunks)
    for bucket in missing:
        ending = _dealt_name("", bucket)
        own = [record for record in dealt if record.file.endswith(ending)]
        rows = _joined([read_shard(target, _kept(plan.shards), record) for record in own])
        order = torch.randperm(len(rows.rows), generator=random_stream(seed, "bucket", bucket))
        write_permuted(target, plan, bucket, rows, order)
        told(len(order))
    done = finish(target, plan)
    assert done is not None
    for name in target.names():
        if name.startswith(_DEALT):
            target.remove(name)
    return done


_DEALT = "dealt-"


def _dealt_name(window: str, bucket: int) -> str:
    return f"{window}-{bucket:05d}.safetensors"


def _plan(manifest: Manifest, seed: int, held: int, shard_bytes: int) -> CachePlan:
    old = manifest.plan
    # so many rows in a bucket that none is empty, which would be a chunk without shards
    n_buckets = max(1, min(-(-manifest.n_rows // held), manifest.n_rows // 64))
    stream = {**old.stream, "shuffle": {"seed": seed, "of": manifest.fingerprint}}
    return replace(old, n_chunks=n_buckets, shard_rows=old.shards.rows_in(shard_bytes), stream=stream)


def _windows(shards: Sequence[ShardRecord], held: int) -> Iterator[list[ShardRecord]]:
    """Runs of shards of at most ``held`` rows, one shard at least."""
    window: list[ShardRecord] = []
    for shard in shards:
        if window and sum(each.n_rows for each in window) + shard.n_rows > held:
            yield window
            window = []
        window.append(shard)
    yield window


def _kept(layout: ShardLayout) -> ShardLayout:
    """How dealt rows are kept: as they are, int8 by value."""
    return replace(layout, dtype="float32") if layout.dtype == "int8" else layout


def _deal(
    source: ShardSource, target: CacheFolder, plan: CachePlan, seed: int, number: int, records: Sequence[ShardRecord]
) -> tuple[ShardRecord, ...]:
    """Write a window's rows, a file for each bucket, and then what says that these are whole; all but what is there."""
    window = f"{_DEALT}{number:05d}"
    there = read_records(target, f"{window}.json")
    if there is not None:
        return there
    rows = _joined([read_whole(source, record) for record in records])
    buckets = torch.randint(plan.n_chunks, (len(rows.rows),), generator=random_stream(seed, "deal", number))
    written = []
    for bucket in range(plan.n_chunks):
        chosen = (buckets == bucket).nonzero().squeeze(1)
        if len(chosen) > 0:
            written.append(write_shard(target, _dealt_name(window, bucket), _kept(plan.shards), rows.take(chosen)))
    write_json(target, f"{window}.json", [asdict(record) for record in written])
    return tuple(written)


def _joined(parts: list[Shard]) -> Shard:
    def join(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return parts[0] if len(parts) == 1 else Shard(join("rows"), *(join(name) for name in ORIGIN))
