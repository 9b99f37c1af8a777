"""One shard of an activation cache: a safetensors file whose header is known before it is read.

For each site ``[n, width]`` in the cache's type (int8 has ``<site>.scale [width]`` beside it), and for each row where
it comes from: ``token_ids``, ``contexts`` and ``positions``, ``[n]`` int32.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from monosema.core.errors import FileError, first_line
from monosema.data.cache.folders import CacheFolder, Readable

CacheDtype = Literal["float32", "float16", "bfloat16", "int8"]
DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)
ORIGIN = ("token_ids", "contexts", "positions")
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "I32": torch.int32}
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
_MOST_HEADER_BYTES = 2**20
SHARD_BYTES = 2**27
"""About the size of a shard: large enough to be read at a disk's sequential rate, small enough to mix many."""
_PIECE_BYTES = 2**19
"""Read at a time: its checksum is taken while it is in the processor's cache."""


@dataclass(frozen=True)
class ShardLayout:
    """What every shard of a cache holds."""

    sites: tuple[tuple[str, int], ...]
    """(hook name, width) in the order of a row's columns."""
    dtype: CacheDtype
    """Type the activations are stored in."""

    @property
    def row_bytes(self) -> int:
        """Of a row with its origin, the scales of int8 left out."""
        return self.torch_dtype.itemsize * sum(width for _, width in self.sites) + 4 * len(ORIGIN)

    def rows_in(self, n_bytes: int) -> int:
        """Rows of a shard of about ``n_bytes``, such that its tensors lie on whole words of 64 bits."""
        n_rows = max(1, n_bytes // self.row_bytes)
        return n_rows - n_rows % 8 if n_rows > 8 else n_rows

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the stored numbers."""
        return _TORCH[_NAMES[self.dtype]]

    def header(self, n_rows: int) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of each tensor of a shard of ``n_rows``."""
        entries = {name: (_NAMES[self.dtype], [n_rows, width]) for name, width in self.sites}
        if self.dtype == "int8":
            entries |= {f"{name}.scale": ("F32", [width]) for name, width in self.sites}
        return entries | {name: ("I32", [n_rows]) for name in ORIGIN}

    def room(self, n_rows: int) -> dict[str, Tensor]:
        """Uninitialised tensors for a shard of ``n_rows``, by the names in its file."""
        return {name: torch.empty(shape, dtype=_TORCH[dtype]) for name, (dtype, shape) in self.header(n_rows).items()}

    def shard(self, tensors: Mapping[str, Tensor]) -> Shard:
        """The shard that ``tensors`` of a file are."""
        blocks = [tensors[name] for name, _ in self.sites]
        if self.dtype == "int8":
            blocks = [tensors[name].float().mul_(tensors[f"{name}.scale"]) for name, _ in self.sites]
        rows = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        return Shard(rows, *(tensors[name] for name in ORIGIN))


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of a shard."""

    file: str
    """Its name in the cache's folder."""
    n_rows: int
    """Rows it holds."""
    n_bytes: int
    """Its size."""
    check: str
    """``checksum`` of its bytes, looked at whenever it is read."""
    sha256: str
    """For copies of the cache, ``sha256sum``."""

    @staticmethod
    def parse(values: Any, where: str) -> ShardRecord:
        """From JSON; ``FileError`` where it is no such record or its file lies elsewhere."""
        kinds = {"file": str, "n_rows": int, "n_bytes": int, "check": str, "sha256": str}
        if not isinstance(values, dict) or any(type(values.get(key)) is not kind for key, kind in kinds.items()):
            raise FileError(f"{where} has a damaged shard record: {str(values)[:200]}")
        name = values["file"]
        if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"} or len(name.encode()) > 255:
            raise FileError(f"{where} names a shard outside its folder: {name!r:.200}")
        if values["n_rows"] < 1 or values["n_bytes"] < 1:
            raise FileError(f"{where} has a damaged shard record: {str(values)[:200]}")
        return ShardRecord(**{key: values[key] for key in kinds})


@dataclass(frozen=True)
class Shard:
    """Rows of a cache in memory."""

    rows: Tensor
    """[n, d] activations; float32 where they are stored as int8."""
    token_ids: Tensor
    """[n] int32."""
    contexts: Tensor
    """[n] int32: the context's number in the text."""
    positions: Tensor
    """[n] int32: the token's place in its context."""

    def take(self, rows: Tensor) -> Shard:
        """A copy of some rows, by their numbers."""
        origin = rows.cpu()
        return Shard(self.rows[rows], *(getattr(self, name)[origin] for name in ORIGIN))


def write_shard(folder: CacheFolder, file: str, layout: ShardLayout, shard: Shard) -> ShardRecord:
    """Write ``shard`` as ``file``, whole or not at all; ``FileError`` where that cannot be."""
    tensors: dict[str, Tensor] = {name: getattr(shard, name).to(torch.int32).cpu().contiguous() for name in ORIGIN}
    widths = [width for _, width in layout.sites]
    for (name, _), block in zip(layout.sites, shard.rows.split(widths, dim=1), strict=True):
        if layout.dtype == "int8":
            scale = block.float().abs().amax(0).clamp(min=torch.finfo(torch.float32).tiny) / 127
            tensors[f"{name}.scale"] = scale.cpu()
            block = (block.float() / scale).round_().to(torch.int8)
        tensors[name] = block.to(layout.torch_dtype).cpu().contiguous()
    content = save(tensors)
    folder.write(file, content)
    digest = hashlib.sha256(content).hexdigest()
    return ShardRecord(file, len(shard.rows), len(content), checksum(content), digest)


def read_shard(folder: CacheFolder, layout: ShardLayout, record: ShardRecord) -> Shard:
    """The shard of ``record``; ``FileError`` naming it where it is missing or not what was written."""
    require_shard(folder, layout, record)
    tensors = layout.room(record.n_rows)
    read_shard_into(folder, layout, record, tensors)
    return layout.shard(tensors)


def require_shard(folder: CacheFolder, layout: ShardLayout, record: ShardRecord) -> None:
    """Raise ``FileError`` unless the shard's file has the size that was written, and its rows fit into that."""
    where = f"{folder}/{record.file}"
    size = folder.size(record.file)
    if size is None:
        raise FileError(f"{where} is missing; {_ADVICE}")
    if size != record.n_bytes:
        raise FileError(f"{where} has {size:,} bytes, {record.n_bytes:,} were written; {_ADVICE}")
    if record.n_rows * layout.row_bytes > size:
        raise FileError(f"{where} is not a shard of this cache: {record.n_rows:,} rows do not fit into it; {_ADVICE}")


def read_shard_into(
    folder: CacheFolder, layout: ShardLayout, record: ShardRecord, targets: Mapping[str, Tensor]
) -> None:
    """The tensors named in ``targets`` alone, into contiguous tensors of the shard's types and shapes.

    ``FileError`` naming the shard where it is not what was written.
    """
    where = f"{folder}/{record.file}"
    try:
        with folder.open(record.file) as file:
            found = _copy(file, record.n_bytes, layout.header(record.n_rows), targets)
    except OSError as error:
        raise FileError(f"cannot read {where}: {error.strerror or error}; {_ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not a shard of this cache: {first_line(error)}; {_ADVICE}") from error
    if found != record.check:
        raise FileError(f"{where} is not what was written (its checksum differs); {_ADVICE}")


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes lie in a file, and where they go."""

    begin: int
    stop: int
    target: memoryview

    @property
    def words(self) -> range:
        """The file's whole words of 64 bits among them."""
        return range(-(-self.begin // 8) * 8, self.stop // 8 * 8, 8)


def _copy(file: Readable, size: int, expected: dict[str, tuple[str, list[int]]], targets: Mapping[str, Tensor]) -> str:
    """Put the tensors of a file of ``size`` bytes into ``targets``; returns its checksum. Raises ``ValueError``.

    Whole words are read to where they belong and summed there; the rest, of which there is little, goes through a
    buffer.
    """
    check, start = _Checksum(), memoryview(bytearray(8))
    _fill(file, start)
    n_header = int.from_bytes(start, "little")
    if n_header > min(_MOST_HEADER_BYTES, size - 8) or n_header % 8:
        raise ValueError("its header is too long, or not of whole words")
    header = memoryview(bytearray(n_header))
    _fill(file, header)
    check.update(start)
    check.update(header)
    offsets, buffer = _offsets(bytes(header), size, expected), memoryview(bytearray(_PIECE_BYTES))
    places = [_Place(*offsets[name], _bytes_of(target)) for name, target in targets.items()]
    position = 8 + n_header
    while position < size:
        home = next((place for place in places if position in place.words), None)
        if home is not None:
            piece = home.target[position - home.begin : home.words.stop - home.begin][:_PIECE_BYTES]
        else:
            end = min([size, *(place.words.start for place in places if place.words and place.words.start > position)])
            piece = buffer[: end - position]
        _fill(file, piece)
        check.update(piece)
        for place in places if home is None else ():
            low, high = max(place.begin, position), min(place.stop, position + len(piece))
            if low < high:
                place.target[low - place.begin : high - place.begin] = piece[low - position : high - position]
        position += len(piece)
    return check.text()


def _fill(file: Readable, view: memoryview) -> None:
    n_read = 0
    while n_read < len(view):
        n = file.readinto(view[n_read:])
        if not n:
            raise ValueError("it ended early")
        n_read += n


def _bytes_of(tensor: Tensor) -> memoryview:
    found: memoryview = tensor.view(torch.uint8).view(-1).numpy().data
    return found


_ADVICE = "delete it and run the command that wrote the cache again (the rest is kept), or restore it from a copy"


def checksum(content: bytes | bytearray | memoryview) -> str:
    """Exclusive or and sum of the content's 64-bit words, and its length: as fast as memory, so that every read can
    look. It finds any flipped bit, truncation and exchange; nothing made to deceive it."""
    check = _Checksum()
    check.update(memoryview(content))
    return check.text()


class _Checksum:
    """The same of content that comes in pieces, all but the last of whole words."""

    def __init__(self) -> None:
        self._mixed = self._total = self._size = 0

    def update(self, piece: memoryview) -> None:
        whole = len(piece) // 8 * 8
        words = np.frombuffer(piece[:whole], dtype="<u8")
        rest = int.from_bytes(bytes(piece[whole:]), "little")
        self._mixed ^= int(np.bitwise_xor.reduce(words)) ^ rest
        self._total = (self._total + int(np.add.reduce(words, dtype=np.uint64)) + rest) % 2**64
        self._size += len(piece)

    def text(self) -> str:
        return f"{self._mixed:016x}{self._total:016x}{self._size:x}"


def _offsets(content: bytes, size: int, expected: dict[str, tuple[str, list[int]]]) -> dict[str, tuple[int, int]]:
    """Where the tensors of a safetensors file of ``size`` bytes begin and end, by its header, the ``expected`` one.

    Raises ``ValueError``.
    """
    start, header = 8 + len(content), json.loads(content.decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    header.pop("__metadata__", None)
    if set(header) != set(expected):
        raise ValueError(f"it holds {sorted(header)[:8]}, not {sorted(expected)[:8]}")
    places = {}
    for name, (dtype, shape) in expected.items():
        entry = header[name]
        if not isinstance(entry, dict) or entry.get("dtype") != dtype or entry.get("shape") != shape:
            raise ValueError(f"{name} is not {dtype} {shape}")
        offsets = entry.get("data_offsets")
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or any(type(each) is not int for each in offsets)
            or not 0 <= offsets[0] <= offsets[1] <= size - start
            or offsets[1] - offsets[0] != math.prod(shape) * _TORCH[dtype].itemsize
        ):
            raise ValueError(f"{name} lies outside the file")
        places[name] = start + offsets[0], start + offsets[1]
    return places
