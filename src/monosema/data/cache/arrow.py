"""sae-lens' caches: a ``datasets`` folder with a column ``[context, d_in]`` for each hook, and ``token_ids``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import ConfigError, FileError, first_line
from monosema.core.files import atomic_folder, read_json, write_json
from monosema.core.metadata import checked_metadata
from monosema.core.plain import dump_json, mapping_in
from monosema.data.cache.folders import LocalFolder, require_room
from monosema.data.cache.manifest import CachePlan, Manifest
from monosema.data.cache.shards import DTYPES, SHARD_BYTES, ShardRecord
from monosema.data.cache.sources import ShardSource, read_whole

STATE, INFO, TOKEN_IDS, RECORD = "state.json", "dataset_info.json", "token_ids", "monosema.json"
"""Files of such a folder, and one of ours that others pass over: what the rows were made from."""
FILE_BYTES = 2**30
"""About the size of a file that is written."""


def is_arrow(folder: Path) -> bool:
    """Whether ``folder`` is one that ``datasets`` saved."""
    return (folder / STATE).exists() and (folder / INFO).exists()


@final
class ArrowShards:
    """Such a folder as shards: runs of contexts, in its order. There are no checksums that could be compared."""

    def __init__(self, folder: Path):
        from datasets import load_from_disk

        self._folder = folder
        try:
            self._dataset = load_from_disk(str(folder))
        except (OSError, ValueError, TypeError, KeyError) as error:  # pyarrow's are of these
            raise FileError(f"{folder} cannot be read as a dataset: {first_line(error)}") from error
        sites, dtype, self._context_size = _columns(folder, self._dataset.features)
        has_record = (folder / RECORD).exists()
        record = checked_metadata(read_json(folder / RECORD), folder / RECORD) if has_record else {}
        plan = CachePlan(sites, sites, dtype, 1, 1, record)
        step = max(1, SHARD_BYTES // (plan.shards.row_bytes * self._context_size))
        content, n_contexts = self._content(), len(self._dataset)
        if n_contexts == 0:
            raise FileError(f"{folder} holds no activations")
        self._contexts: dict[str, tuple[int, int]] = {}
        records = []
        for start in range(0, n_contexts, step):
            stop = min(start + step, n_contexts)
            name, n_rows = f"contexts {start} to {stop - 1}", (stop - start) * self._context_size
            self._contexts[name] = start, stop
            digest = hashlib.sha256(f"{content} {name}".encode()).hexdigest()
            records.append(ShardRecord(name, n_rows, n_rows * plan.shards.row_bytes, "", digest))
        self._manifest = Manifest(plan, tuple(records))

    def __str__(self) -> str:
        return str(self._folder)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def require(self, record: ShardRecord) -> None:
        return  # the dataset's files were opened with it

    def read_into(self, record: ShardRecord, targets: Mapping[str, Tensor]) -> None:
        start, stop = self._contexts[record.file]
        try:
            table = self._dataset.with_format("arrow")[start:stop]
            for name, target in targets.items():
                np.copyto(target.numpy().reshape(-1), self._values(table, name, start, stop), casting="same_kind")
        except (OSError, ValueError, TypeError) as error:
            raise FileError(f"cannot read {record.file} of {self}: {first_line(error)}") from error

    def _values(self, table: Any, name: str, start: int, stop: int) -> np.ndarray:
        """A column's numbers ``[n]``; of a folder without token ids, -1 for each."""
        places = np.arange(self._context_size, dtype=np.int32)
        if name == "contexts":
            return np.arange(start, stop, dtype=np.int32).repeat(self._context_size)
        if name == "positions":
            return np.tile(places, stop - start)
        if name not in table.column_names:
            return np.full(len(places) * (stop - start), -1, dtype=np.int32)
        column = table.column(name).combine_chunks()
        values = getattr(column, "storage", column)
        while values.type.num_fields:  # lists in lists
            values = values.flatten()
        numbers: np.ndarray = values.to_numpy(zero_copy_only=not values.null_count)
        return numbers

    def _content(self) -> str:
        """What tells it from another: the fingerprint that it was written with, its columns, its files' sizes."""
        files = sorted((path.name, path.stat().st_size) for path in self._folder.glob("*.arrow"))
        return dump_json([_mapping(self._folder / STATE).get("_fingerprint"), str(self._dataset.features), files])


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise FileError(f"{path} must hold a mapping, got a {type(values).__name__}; delete it, or get the right one")
    return values


def _columns(folder: Path, features: Mapping[str, Any]) -> tuple[tuple[tuple[str, int], ...], Any, int]:
    """Sites with their widths, the type of all of them, and the length of a context."""
    found = {name: each for name, each in features.items() if len(getattr(each, "shape", ())) == 2}
    shapes = {each.shape[0] for each in found.values()}
    types = {each.dtype for each in found.values()}
    if not found:
        raise FileError(f"{folder} has no column of activations; its columns are {', '.join(features)}")
    if len(shapes) > 1 or len(types) > 1 or not types <= set(DTYPES):
        shown = ", ".join(f"{name} {each.dtype} {list(each.shape)}" for name, each in found.items())
        raise FileError(f"{folder}: columns must be of one length and one type of {', '.join(DTYPES)}, got {shown}")
    return tuple((name, int(each.shape[1])) for name, each in found.items()), types.pop(), int(shapes.pop())


def export_arrow(source: ShardSource, out: str | os.PathLike[str], *, context_size: int | None = None) -> int:
    """Write the rows as sae-lens reads them: in their order, ``context_size`` together; returns how many are left over.

    sae-lens takes rows in the order of the folder and asks of a context that it is as long as all others: here it is a
    run of rows, of any contexts (special tokens have none). float16 and float32 stay as they are, bfloat16 and int8
    become float32. The folder appears whole or not at all.

    Raises ``ConfigError`` where ``out`` is there already or ``context_size`` (by default that of the text) does not fit
    the rows, ``FileError`` where the disk has not enough room.
    """
    import pyarrow

    manifest, target = source.manifest, Path(out)
    size = context_size or int(mapping_in(manifest.plan.stream, "tokens", source).get("context_size") or 0)
    if not 0 < size <= manifest.n_rows:
        raise ConfigError(f"context_size must be at least 1 and at most {manifest.n_rows:,}, the rows; got {size}")
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another folder")
    dtype = "float16" if manifest.plan.dtype == "float16" else "float32"
    sites, n_contexts = manifest.plan.shards.sites, manifest.n_rows // size
    schema, features = _schema(sites, size, dtype)
    context_bytes = size * sum(width for _, width in sites) * np.dtype(dtype).itemsize
    require_room(LocalFolder(target), n_contexts * context_bytes)
    per_file = max(1, FILE_BYTES // context_bytes)
    n_files = -(-n_contexts // per_file)
    names = [f"data-{number:05d}-of-{n_files:05d}.arrow" for number in range(n_files)]
    contexts = _contexts(source, size, n_contexts, per_file)
    with atomic_folder(target) as folder:
        for number, name in enumerate(names):
            left = min(per_file, n_contexts - number * per_file)
            with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
                while left > 0:
                    rows, token_ids = next(contexts)
                    writer.write_batch(_batch(schema, sites, size, dtype, rows, token_ids))
                    left -= len(token_ids) // size
        write_json(
            folder / INFO, {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
        )
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": manifest.fingerprint,
        }
        nothing: dict[str, Any] = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None}
        write_json(folder / STATE, {**state, **nothing, "_output_all_columns": False, "_split": None})
        write_json(folder / RECORD, dict(manifest.plan.stream))
    return manifest.n_rows - n_contexts * size


def _contexts(source: ShardSource, size: int, n_contexts: int, per_file: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All rows and their token ids, in whole contexts, of which no part crosses the end of a file."""
    pending: tuple[Tensor, Tensor] | None = None
    in_file = 0
    for record in source.manifest.shards:
        shard = read_whole(source, record)
        rows, token_ids = shard.rows, shard.token_ids
        if pending is not None:
            rows, token_ids = torch.cat([pending[0], rows]), torch.cat([pending[1], token_ids])
        start = 0
        while len(token_ids) - start >= size:
            n = min((len(token_ids) - start) // size, per_file - in_file) * size
            yield rows[start : start + n], token_ids[start : start + n]
            start, in_file = start + n, (in_file + n // size) % per_file
        pending = rows[start:].clone(), token_ids[start:].clone()


def _schema(sites: Sequence[tuple[str, int]], size: int, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The columns for Arrow and as ``datasets`` writes them (versions before 4 know no other word than Sequence)."""
    from datasets import Array2D, Features, Sequence, Value

    columns: dict[str, Any] = {name: Array2D(shape=(size, width), dtype=dtype) for name, width in sites}
    made = Features({**columns, TOKEN_IDS: Sequence(Value("int32"), length=size)}).arrow_schema
    features = {name: {"shape": [size, width], "dtype": dtype, "_type": "Array2D"} for name, width in sites} | {
        TOKEN_IDS: {"feature": {"dtype": "int32", "_type": "Value"}, "length": size, "_type": "Sequence"}
    }
    return made.with_metadata({"huggingface": json.dumps({"info": {"features": features}})}), features


def _batch(
    schema: Any, sites: Sequence[tuple[str, int]], size: int, dtype: str, rows: Tensor, token_ids: Tensor
) -> Any:
    import pyarrow

    n = len(token_ids) // size
    columns = []
    for name, block in zip(schema.names, rows.split([width for _, width in sites], dim=1), strict=False):
        flat = pyarrow.array(block.to(getattr(torch, dtype)).reshape(-1).numpy())
        inner = pyarrow.ListArray.from_arrays(np.arange(n * size + 1, dtype=np.int32) * block.shape[1], flat)
        outer = pyarrow.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32) * size, inner)
        columns.append(pyarrow.ExtensionArray.from_storage(schema.field(name).type, outer))
    columns.append(pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(token_ids.int().numpy()), size))
    return pyarrow.record_batch(columns, schema=schema)
