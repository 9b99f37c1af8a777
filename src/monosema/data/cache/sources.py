"""Shards that can be read one by one: our own; another system's files are shown as such."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, final, runtime_checkable

from torch import Tensor

from monosema.data.cache.folders import CacheFolder
from monosema.data.cache.manifest import Manifest, read_manifest
from monosema.data.cache.shards import Shard, ShardRecord, read_shard_into, require_shard


@runtime_checkable
class ShardSource(Protocol):
    """Shards that can be read one by one; ``str()`` of it is the place, for messages."""

    @property
    def manifest(self) -> Manifest:
        """What they hold."""

    def require(self, record: ShardRecord) -> None:
        """Raise ``FileError`` unless the shard's file is there in full: before memory is taken for it."""

    def read_into(self, record: ShardRecord, targets: Mapping[str, Tensor]) -> None:
        """Put the shard's tensors named in ``targets`` (a site, ``<site>.scale``, a column of ``ORIGIN``) there.

        ``FileError`` naming the file where it is missing or damaged.
        """


@final
class OwnShards:
    """What ``write_cache`` wrote."""

    def __init__(self, folder: CacheFolder):
        self._folder = folder
        self._manifest = read_manifest(folder)

    def __str__(self) -> str:
        return str(self._folder)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def require(self, record: ShardRecord) -> None:
        require_shard(self._folder, self._manifest.plan.shards, record)

    def read_into(self, record: ShardRecord, targets: Mapping[str, Tensor]) -> None:
        read_shard_into(self._folder, self._manifest.plan.shards, record, targets)


def read_whole(source: ShardSource, record: ShardRecord) -> Shard:
    """One shard with the origin of its rows, in memory of its own."""
    layout = source.manifest.plan.shards
    source.require(record)
    tensors = layout.room(record.n_rows)
    source.read_into(record, tensors)
    return layout.shard(tensors)
