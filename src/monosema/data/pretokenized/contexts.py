"""Contexts in Arrow files: written whole, read where they are indexed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import FileError, first_line
from monosema.core.files import write_atomically
from monosema.data.pretokenized.manifest import StoredShard

COLUMN = "input_ids"
_ADVICE = "restore it from a copy, or delete the folder and write the tokens again"


def write_shard(folder: Path, number: int, contexts: np.ndarray) -> StoredShard:
    """Write ``contexts [n, context_size]`` int32 as one record batch, whole or not at all."""
    import pyarrow as pa

    size = contexts.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(contexts.reshape(-1), pa.int32()), size)
    batch = pa.record_batch([column], schema=_schema(size))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    path = folder / f"data-{number:05d}.arrow"
    write_atomically(path, content)
    return StoredShard(file=path.name, n_contexts=len(contexts), n_bytes=len(content), crc32=zlib.crc32(content))


class StoredContexts:
    """``[n_contexts, context_size]`` int32 over the shards of a folder, indexed along the first axis like a tensor.

    Shards are memory-mapped: what is indexed is copied, the rest stays on disk. A shard's size is looked at here, its
    checksum when it is first read; ``FileError`` names the one that is missing or not what was written.
    """

    def __init__(self, folder: Path, shards: Sequence[StoredShard], context_size: int):
        self._folder, self._shards = folder, tuple(shards)
        self._opened: list[np.ndarray | None] = [None] * len(self._shards)
        self._ends = np.array(list(accumulate(shard.n_contexts for shard in self._shards)), dtype=np.int64)
        self.shape = torch.Size([int(self._ends[-1]) if len(self._ends) else 0, context_size])
        for shard in self._shards:
            path = folder / shard.file
            try:
                n_bytes = path.stat().st_size
            except OSError as error:
                raise FileError(f"cannot read {path}: {error.strerror or error}; {_ADVICE}") from error
            if n_bytes != shard.n_bytes:
                raise FileError(f"{path} has {n_bytes:,} bytes, {shard.n_bytes:,} were written; {_ADVICE}")

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        """Tokens in all contexts."""
        return self.shape.numel()

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """A copy of the contexts that a slice, or a tensor of numbers ``[n]``, chooses: ``[n, context_size]``."""
        if isinstance(index, int):
            return self[torch.tensor([index if index >= 0 else index + len(self)])][0]
        if isinstance(index, Tensor):
            numbers = index.numpy()
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
                raise IndexError(f"contexts {numbers.min()} to {numbers.max()} of {len(self)}")
        else:
            numbers = np.arange(*index.indices(len(self)))
        chosen = np.empty((len(numbers), self.shape[1]), dtype=np.int32)
        homes = np.searchsorted(self._ends, numbers, side="right")
        for home in np.unique(homes).tolist():
            rows = self._rows(home)
            here = homes == home
            chosen[here] = rows[numbers[here] - (self._ends[home] - len(rows))]
        return torch.from_numpy(chosen)

    def pieces(self) -> Iterator[np.ndarray]:
        """The contexts shard by shard, memory-mapped."""
        return (self._rows(number) for number in range(len(self._shards)))

    def _rows(self, number: int) -> np.ndarray:
        rows = self._opened[number]
        if rows is None:
            shard = self._shards[number]
            rows = self._opened[number] = _open(self._folder / shard.file, shard, self.shape[1])
        return rows


def _schema(context_size: int) -> Any:
    import pyarrow as pa

    return pa.schema([pa.field(COLUMN, pa.list_(pa.int32(), context_size))])


def _open(path: Path, shard: StoredShard, context_size: int) -> np.ndarray:
    """The contexts of ``shard``, memory-mapped; every byte is read once."""
    import pyarrow as pa

    try:
        content = pa.memory_map(str(path)).read_buffer()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; {_ADVICE}") from error
    if content.size != shard.n_bytes or zlib.crc32(content) != shard.crc32:
        raise FileError(f"{path} is not what was written (its checksum differs); {_ADVICE}")
    try:
        batch = pa.ipc.open_stream(content).read_next_batch()
        if not batch.schema.equals(_schema(context_size)) or batch.num_rows != shard.n_contexts:
            raise ValueError(f"it holds {batch.num_rows} rows of {batch.schema}")
        rows: np.ndarray = batch.column(0).flatten().to_numpy(zero_copy_only=True)
    except (pa.ArrowException, ValueError) as error:
        raise FileError(f"{path} is no shard of packed tokens: {first_line(error)}; {_ADVICE}") from error
    return rows.reshape(shard.n_contexts, context_size)
