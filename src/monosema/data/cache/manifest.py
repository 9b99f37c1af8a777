"""What a cache's folder says about itself.

``plan.json`` is written first: what the cache is to hold. ``chunk-*.json`` says that a chunk's shards are whole.
``manifest.json`` comes last and makes it a cache.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from monosema.core.errors import FileError
from monosema.core.metadata import checked_metadata
from monosema.core.plain import dump_json, is_same, parse_json, require_version, text_in
from monosema.data.cache.folders import CacheFolder
from monosema.data.cache.shards import DTYPES, ShardLayout, ShardRecord
from monosema.data.sites import RowLayout

FORMAT = "monosema-activations"
VERSION = 1
_MOST = 2**40
_CHUNK_NAME = re.compile(r"chunk-\d+\.json")
PLAN, MANIFEST = "plan.json", "manifest.json"


@dataclass(frozen=True)
class CachePlan:
    """What a cache holds, decided before the first row is made."""

    reads: tuple[tuple[str, int], ...]
    """(hook name, width) of the sites a dictionary reads."""
    writes: tuple[tuple[str, int], ...]
    """Of those it writes; the same for an SAE."""
    dtype: str
    """Type the activations are stored in."""
    n_chunks: int
    """Windows of contexts whose rows were permuted together."""
    shard_rows: int
    """Rows in a shard; the last one of a chunk has fewer."""
    stream: Mapping[str, Any]
    """``ActivationStream.record``: model, text, seed and the rest."""
    n_contexts: int | None = None
    """Contexts that it is made of; None where that is not recorded."""

    @property
    def layout(self) -> RowLayout:
        return RowLayout(self.reads, self.writes)

    @property
    def shards(self) -> ShardLayout:
        sites = self.reads if self.reads == self.writes else self.reads + self.writes
        return ShardLayout(sites, self.dtype)  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """As it is written."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {"format": FORMAT, "version": VERSION, **parse_json(dump_json(values))}

    @staticmethod
    def parse(values: Any, where: str) -> CachePlan:
        """From JSON; ``FileError`` where it is another format, a newer version, or damaged."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise FileError(f"{where} does not describe an activation cache")
        require_version(values, VERSION, where)
        try:
            reads, writes = (
                tuple((_name(name), _positive(width)) for name, width in values[side]) for side in ("reads", "writes")
            )
            plan = CachePlan(
                reads,
                writes,
                text_in(values, "dtype", where) or "none",
                _positive(values["n_chunks"]),
                _positive(values["shard_rows"]),
                checked_metadata(values["stream"], where),
                _positive(values["n_contexts"]) if "n_contexts" in values else None,
            )
        except FileError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{where} is damaged ({type(error).__name__}: {error})") from error
        if plan.dtype not in DTYPES or not reads or not writes or len(set(plan.shards.sites)) < len(plan.shards.sites):
            raise FileError(f"{where} is damaged: sites {reads} and {writes} in {plan.dtype!r}")
        return plan


@dataclass(frozen=True)
class Manifest:
    """A whole cache."""

    plan: CachePlan
    """What it holds."""
    shards: tuple[ShardRecord, ...]
    """In the order they were made."""

    @property
    def n_rows(self) -> int:
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        return sum(shard.n_bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Equal for caches with equal content."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        return {**self.plan.plain(), "n_rows": self.n_rows, "shards": [asdict(shard) for shard in self.shards]}


def read_manifest(folder: CacheFolder) -> Manifest:
    """The manifest in ``folder``; ``FileError`` where it is none, unfinished or damaged."""
    if not folder.exists(MANIFEST):
        if folder.exists(PLAN):
            plan = CachePlan.parse(folder.read_json(PLAN), f"{folder}/{PLAN}")
            done = sum(bool(_CHUNK_NAME.fullmatch(name)) for name in folder.names())
            raise FileError(
                f"the cache in {folder} is not finished ({done} of {plan.n_chunks} chunks); run the command that "
                "writes it again, it goes on from there"
            )
        raise FileError(f"{folder} holds no activation cache ({MANIFEST} is missing)")
    values, where = folder.read_json(MANIFEST), f"{folder}/{MANIFEST}"
    plan = CachePlan.parse(values, where)
    records = values.get("shards")
    if not isinstance(records, list) or not records:
        raise FileError(f"{where} lists no shards")
    manifest = Manifest(plan, tuple(ShardRecord.parse(record, where) for record in records))
    files = {shard.file for shard in manifest.shards}
    if not is_same(values.get("n_rows"), manifest.n_rows) or len(files) < len(records):
        raise FileError(f"{where} is damaged: its shards do not add up")
    return manifest


def read_chunk(folder: CacheFolder, number: int) -> tuple[ShardRecord, ...] | None:
    """The shards of a chunk whose files are all there in full; None where it must be made (again)."""
    return read_records(folder, chunk_name(number))


def read_records(folder: CacheFolder, file: str) -> tuple[ShardRecord, ...] | None:
    """The shards that ``file`` lists, where all are there in full; else None."""
    if not folder.exists(file):
        return None
    records = folder.read_json(file)
    if not isinstance(records, list) or not records:
        return None
    found = tuple(ShardRecord.parse(record, f"{folder}/{file}") for record in records)
    return found if all(folder.size(record.file) == record.n_bytes for record in found) else None


def chunk_name(number: int) -> str:
    return f"chunk-{number:05d}.json"


def shard_name(chunk: int, number: int) -> str:
    return f"chunk-{chunk:05d}-{number:04d}.safetensors"


def _positive(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ValueError(f"{value!r:.50} is not a positive whole number below 2^40")
    return value


def _name(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.50} is not the name of a site")
    return value
