"""drrik's activations, a row for each sample: ``activations.npy`` and ``metadata.pkl``, or both in a legacy ``.pkl``.

Those that ``drrik_export`` writes have ``metadata.json`` instead, and the origins of rows in ``.npy`` files beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import DataError, FileError
from monosema.core.files import read_json
from monosema.core.finite import all_finite
from monosema.core.pickles import read_pickle
from monosema.data.cache.drrik_metadata import DrrikMetadata, DrrikSample, parse_metadata
from monosema.data.cache.manifest import CachePlan, Manifest
from monosema.data.cache.shards import ORIGIN, SHARD_BYTES, CacheDtype, ShardRecord
from monosema.data.site_arrays import SiteArrays, open_npy

ACTIVATIONS, METADATA, PICKLED = "activations.npy", "metadata.json", "metadata.pkl"
_LEGACY = (".pkl", ".pickle")
_LEAST_SHARDS = 64
"""Into so many a small file is cut, for the order and for what is set aside."""
_DTYPES: dict[int, CacheDtype] = {2: "float16", 4: "float32", 8: "float32"}


def is_drrik(path: Path) -> bool:
    """Whether ``path`` is such a folder, its ``activations.npy``, or a pickle."""
    if path.suffix in _LEGACY:
        return path.is_file()
    folder = path.parent if path.name == ACTIVATIONS else path
    return (folder / ACTIVATIONS).is_file() and any((folder / name).exists() for name in (METADATA, PICKLED))


@final
class DrrikShards:
    """Such files as shards: runs of rows, in their order. There are no checksums that could be compared.

    Rows of several layers are cut into sites. ``.npy`` files are memory-mapped; float64 is read as float32.

    Args:
        path: the folder, its ``activations.npy``, or a legacy pickle with ``activations`` and ``metadata``.

    Raises:
        FileError: files that are missing, damaged, or do not belong together. Pickles are read as data alone.
    """

    def __init__(self, path: Path):
        self._path = path
        array, values, where = _legacy(path) if path.suffix in _LEGACY else _folder(path)
        if not isinstance(array, np.ndarray) or array.ndim != 2 or 0 in array.shape:
            raise FileError(f"{path}: activations must be an array [n_samples, d], got {_kind(array)}")
        if array.dtype.kind != "f" or array.itemsize not in _DTYPES:
            raise FileError(f"{path}: activations must be float16, float32 or float64, got {_kind(array)}")
        self._array = array
        self._metadata = parse_metadata(values, array.shape, where)
        plan = CachePlan(
            self._metadata.reads, self._metadata.writes, _DTYPES[array.itemsize], 1, 1, self._metadata.stream
        )
        self._columns, start = {}, 0
        for name, width in plan.shards.sites:
            self._columns[name], start = slice(start, start + width), start + width
        self._origin = _origin(path, self._metadata, len(array))
        self._rows: dict[str, tuple[int, int]] = {}
        self._manifest = Manifest(plan, tuple(self._records(plan)))

    def __str__(self) -> str:
        return str(self._path)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def samples(self) -> tuple[DrrikSample, ...]:
        """What each row is of, in the order of the file; empty where that is not recorded.

        The ``contexts`` of a row is its sample's ``sample_idx``.
        """
        return self._metadata.samples

    def require(self, record: ShardRecord) -> None:
        return  # the file was opened with it

    def read_into(self, record: ShardRecord, targets: Mapping[str, Tensor]) -> None:
        start, stop = self._rows[record.file]
        for name, target in targets.items():
            if name in ORIGIN:
                np.copyto(target.numpy(), self._origin[name][start:stop])
                continue
            with np.errstate(over="ignore"):
                np.copyto(target.numpy(), self._array[start:stop, self._columns[name]], casting="same_kind")
            if not all_finite(target):
                row = start + int(torch.isfinite(target).all(1).int().argmin())
                raise DataError(f"{self}: row {row} holds values that are not finite; remove such rows first")

    def _records(self, plan: CachePlan) -> list[ShardRecord]:
        content, n = SiteArrays(self._array).digest, len(self._array)
        step = max(1, min(SHARD_BYTES // plan.shards.row_bytes, -(-n // _LEAST_SHARDS)))
        records = []
        for start in range(0, n, step):
            stop = min(start + step, n)
            name = f"rows {start} to {stop - 1}"
            self._rows[name] = start, stop
            digest = hashlib.sha256(f"{content} {name}".encode()).hexdigest()
            records.append(ShardRecord(name, stop - start, (stop - start) * plan.shards.row_bytes, "", digest))
        return records


def _legacy(path: Path) -> tuple[Any, Any, str]:
    values = read_pickle(path)
    if not isinstance(values, dict) or not {"activations", "metadata"} <= set(values):
        raise FileError(f"{path} holds no activations: it must be a mapping with 'activations' and 'metadata'")
    return values["activations"], values["metadata"], f"the metadata in {path}"


def _folder(path: Path) -> tuple[Any, Any, str]:
    folder = path.parent if path.name == ACTIVATIONS else path
    array, where = open_npy(folder / ACTIVATIONS), folder / METADATA
    if where.exists():
        return array, read_json(where), str(where)
    where = folder / PICKLED
    return array, read_pickle(where), str(where)


def _origin(path: Path, metadata: DrrikMetadata, n: int) -> dict[str, np.ndarray]:
    """Of the rows: from files of their own, else from the samples; -1 where there are neither."""
    folder = path.parent if path.is_file() else path
    if path.suffix not in _LEGACY and all((folder / f"{name}.npy").exists() for name in ORIGIN):
        found = {name: open_npy(folder / f"{name}.npy") for name in ORIGIN}
        for name, each in found.items():
            if each.dtype != np.int32 or each.shape != (n,):
                raise FileError(f"{folder}/{name}.npy must be int32 [{n}], got {_kind(each)}")
        return found
    return metadata.origin() if metadata.samples else dict.fromkeys(ORIGIN, np.full(n, -1, np.int32))


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
