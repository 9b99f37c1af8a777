"""Contexts in Arrow files: written whole, read where they are indexed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import FileError, first_line
from monosema.core.files import require_regular, write_atomically
from monosema.core.words import counted
from monosema.data.packed.manifest import StoredShard
from monosema.data.packing import PackedBlock, document_type

IDS, DOCUMENTS = "input_ids", "documents"
"""The columns: token ids, and the number of each position's document where these are kept."""
_ADVICE = "restore it from a copy, or delete the folder and write the tokens again"


def write_shard(folder: Path, number: int, contexts: PackedBlock, *, keeps_documents: bool) -> StoredShard:
    """Write ``contexts`` as one record batch, whole or not at all."""
    import pyarrow as pa

    size = contexts.ids.shape[1]
    schema = _schema(size, keeps_documents)
    arrays = [contexts.ids, contexts.documents][: len(schema)]
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(each.reshape(-1)), size) for each in arrays]
    batch = pa.record_batch(columns, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    path = folder / f"data-{number:05d}.arrow"
    write_atomically(path, content)
    return StoredShard(file=path.name, n_contexts=len(contexts.ids), n_bytes=len(content), crc32=zlib.crc32(content))


@final
class StoredShards:
    """The shards of a folder, memory-mapped.

    A shard's size is compared here with that of its file, and so is the number of its contexts. Its checksum is
    compared when it is first read. ``FileError`` names the one that is missing or not what was written.
    """

    def __init__(self, folder: Path, shards: Sequence[StoredShard], context_size: int, *, keeps_documents: bool):
        self.context_size = context_size
        self._folder, self._shards, self._keeps_documents = folder, tuple(shards), keeps_documents
        self._opened: list[dict[str, np.ndarray] | None] = [None] * len(self._shards)
        types = _types(context_size, keeps_documents)
        context_bytes = sum(each.itemsize for each in types.values()) * context_size
        for shard in self._shards:
            path = folder / shard.file
            try:
                n_bytes = path.stat().st_size
            except OSError as error:
                raise FileError(f"cannot read {path}: {error.strerror or error}; {_ADVICE}") from error
            if n_bytes != shard.n_bytes:
                raise FileError(f"{path} has {counted(n_bytes, 'byte')}, {shard.n_bytes:,} were written; {_ADVICE}")
            if shard.n_contexts * context_bytes > n_bytes:
                raise FileError(
                    f"{path} is no shard of packed tokens: {counted(shard.n_contexts, 'context')} of "
                    f"{counted(context_size, 'token')} do not fit into its {counted(n_bytes, 'byte')}; {_ADVICE}"
                )
        self.ends = np.array(list(accumulate(shard.n_contexts for shard in shards)), dtype=np.int64)
        """Contexts up to the end of each."""

    def column(self, name: str, number: int) -> np.ndarray:
        """One column ``[n, context_size]`` of a shard."""
        columns = self._opened[number]
        if columns is None:
            shard, schema = self._shards[number], _schema(self.context_size, self._keeps_documents)
            columns = self._opened[number] = _open(self._folder / shard.file, shard, schema, self.context_size)
        return columns[name]


@final
class StoredContexts:
    """``[n_contexts, context_size]`` of one column of ``shards``, indexed along the first axis like a tensor.

    What is indexed is copied, the rest stays on disk.
    """

    def __init__(self, shards: StoredShards, column: str = IDS):
        self._shards, self._column = shards, column
        self._dtype = _types(shards.context_size, keeps_documents=True)[column]
        self.shape = torch.Size([int(shards.ends[-1]) if len(shards.ends) else 0, shards.context_size])

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
        chosen = np.empty((len(numbers), self.shape[1]), dtype=self._dtype)
        ends = self._shards.ends
        homes = np.searchsorted(ends, numbers, side="right")
        for home in np.unique(homes).tolist():
            rows = self._shards.column(self._column, home)
            here = homes == home
            chosen[here] = rows[numbers[here] - (ends[home] - len(rows))]
        return torch.from_numpy(chosen)

    def pieces(self) -> Iterator[np.ndarray]:
        """The contexts shard by shard, memory-mapped."""
        return (self._shards.column(self._column, number) for number in range(len(self._shards.ends)))


def _types(context_size: int, keeps_documents: bool) -> dict[str, np.dtype[Any]]:
    """The type of each column."""
    documents = {DOCUMENTS: np.dtype(document_type(context_size))} if keeps_documents else {}
    return {IDS: np.dtype(np.int32), **documents}


def _schema(context_size: int, keeps_documents: bool) -> Any:
    import pyarrow as pa

    types = _types(context_size, keeps_documents).items()
    return pa.schema([pa.field(name, pa.list_(pa.from_numpy_dtype(each), context_size)) for name, each in types])


def _open(path: Path, shard: StoredShard, schema: Any, context_size: int) -> dict[str, np.ndarray]:
    """The columns of ``shard``, memory-mapped; every byte is read once."""
    import pyarrow as pa

    try:
        require_regular(path)
        content = pa.memory_map(str(path)).read_buffer()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; {_ADVICE}") from error
    if content.size != shard.n_bytes or zlib.crc32(content) != shard.crc32:
        raise FileError(f"{path} is not what was written (its checksum differs); {_ADVICE}")
    try:
        batch = pa.ipc.open_stream(content).read_next_batch()
        batch.validate(full=True)
        if not batch.schema.equals(schema) or batch.num_rows != shard.n_contexts:
            raise ValueError(f"it holds {counted(batch.num_rows, 'row')} of {batch.schema}")
        columns = {name: batch.column(name).flatten().to_numpy(zero_copy_only=True) for name in schema.names}
        return {name: column.reshape(shard.n_contexts, context_size) for name, column in columns.items()}
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        raise FileError(f"{path} is no shard of packed tokens: {first_line(error)}; {_ADVICE}") from error
