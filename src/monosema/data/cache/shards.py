"""One shard of an activation cache: a safetensors file whose header is known before it is read.

For each site ``[n, width]`` in the cache's type (int8 has ``<site>.scale [width]`` beside it), and for each row where
it comes from: ``token_ids``, ``contexts`` and ``positions``, ``[n]`` int32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from xxhash import xxh3_128

from monosema.core.errors import FileError, first_line
from monosema.core.plain import parse_json
from monosema.core.tensors import file_pieces
from monosema.core.words import counted
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
    pieces, check, sha256 = list(file_pieces(tensors)), xxh3_128(), hashlib.sha256()
    for piece in pieces:
        check.update(piece)
        sha256.update(piece)
    folder.write(file, pieces)
    return ShardRecord(file, len(shard.rows), sum(map(len, pieces)), check.hexdigest(), sha256.hexdigest())


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
        raise FileError(f"{where} has {counted(size, 'byte')}, {record.n_bytes:,} were written; {_ADVICE}")
    if record.n_rows * layout.row_bytes > size:
        raise FileError(
            f"{where} is not a shard of this cache: it is too short for {counted(record.n_rows, 'row')}; {_ADVICE}"
        )


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


def _copy(file: Readable, size: int, expected: dict[str, tuple[str, list[int]]], targets: Mapping[str, Tensor]) -> str:
    """Put the tensors of a file of ``size`` bytes into ``targets``; returns its checksum. Raises ``ValueError``.

    The file is read once, from its beginning to its end, every byte to where it belongs.
    """
    digest, start = xxh3_128(), memoryview(bytearray(8))
    _fill(file, start, digest)
    n_header = int.from_bytes(start, "little")
    if n_header > min(_MOST_HEADER_BYTES, size - 8):
        raise ValueError("its header is too long")
    header = memoryview(bytearray(n_header))
    _fill(file, header, digest)
    offsets, scratch = _offsets(bytes(header), size, expected), memoryview(bytearray(_PIECE_BYTES))
    position = 8 + n_header
    for begin, stop, name in sorted((*offsets[name], name) for name in targets):
        if begin < position:
            raise ValueError("its tensors overlap")
        _pass_over(file, begin - position, scratch, digest)
        _fill(file, _bytes_of(targets[name]), digest)
        position = stop
    _pass_over(file, size - position, scratch, digest)
    return digest.hexdigest()


def _fill(file: Readable, view: memoryview, digest: xxh3_128) -> None:
    """Read as many bytes as ``view`` has into it, and ``digest`` them while they are in the processor's cache."""
    while view:
        n = file.readinto(view[:_PIECE_BYTES])
        if not n:
            raise ValueError("it ended early")
        digest.update(view[:n])
        view = view[n:]


def _pass_over(file: Readable, n_bytes: int, scratch: memoryview, digest: xxh3_128) -> None:
    for start in range(0, n_bytes, len(scratch)):
        _fill(file, scratch[: n_bytes - start], digest)


def _bytes_of(tensor: Tensor) -> memoryview:
    found: memoryview = tensor.view(torch.uint8).view(-1).numpy().data
    return found


_ADVICE = "delete it and run the command that wrote the cache again (the rest is kept), or restore it from a copy"


def checksum(content: bytes) -> str:
    """XXH3 of 128 bits, in hexadecimal: nearly as fast as memory, so that every read can look. It finds damage, not
    what was made to deceive."""
    digest: str = xxh3_128(content).hexdigest()
    return digest


def _offsets(content: bytes, size: int, expected: dict[str, tuple[str, list[int]]]) -> dict[str, tuple[int, int]]:
    """Where the tensors of a safetensors file of ``size`` bytes begin and end, by its header, the ``expected`` one.

    Raises ``ValueError``.
    """
    start, header = 8 + len(content), parse_json(content)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    header.pop("__metadata__", None)
    if set(header) != set(expected):
        raise ValueError(f"it holds {sorted(header)[:8]}, not {sorted(expected)[:8]}")
    places = {}
    for name, (dtype, shape) in expected.items():
        entry = header[name]
        if not isinstance(entry, dict) or entry.get("dtype") != dtype or not _is_shape(entry.get("shape"), shape):
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


def _is_shape(found: Any, shape: list[int]) -> bool:
    return isinstance(found, list) and found == shape and all(type(each) is int for each in found)
