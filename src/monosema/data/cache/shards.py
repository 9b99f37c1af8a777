"""One shard of an activation cache: a safetensors file whose header is known before it is read.

For each site ``[n, width]`` in the cache's type (int8 has ``<site>.scale [width]`` beside it), and for each row where
it comes from: ``token_ids``, ``contexts`` and ``positions``, ``[n]`` int32.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from monosema.core.errors import FileError, first_line
from monosema.core.files import require_regular, write_atomically

CacheDtype = Literal["float32", "float16", "bfloat16", "int8"]
DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)
ORIGIN = ("token_ids", "contexts", "positions")
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "I32": torch.int32}
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
_MOST_HEADER_BYTES = 2**20


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
        size = torch.empty((), dtype=_TORCH[_NAMES[self.dtype]]).element_size()
        return size * sum(width for _, width in self.sites) + 4 * len(ORIGIN)

    def header(self, n_rows: int) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of each tensor of a shard of ``n_rows``."""
        entries = {name: (_NAMES[self.dtype], [n_rows, width]) for name, width in self.sites}
        if self.dtype == "int8":
            entries |= {f"{name}.scale": ("F32", [width]) for name, width in self.sites}
        return entries | {name: ("I32", [n_rows]) for name in ORIGIN}


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
    def parse(values: Any, where: Path) -> ShardRecord:
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


def write_shard(path: Path, layout: ShardLayout, shard: Shard) -> ShardRecord:
    """Write ``shard`` to ``path``, whole or not at all; ``FileError`` where that cannot be."""
    tensors: dict[str, Tensor] = {name: getattr(shard, name).to(torch.int32).cpu().contiguous() for name in ORIGIN}
    widths = [width for _, width in layout.sites]
    for (name, _), block in zip(layout.sites, shard.rows.split(widths, dim=1), strict=True):
        if layout.dtype == "int8":
            scale = block.float().abs().amax(0).clamp(min=torch.finfo(torch.float32).tiny) / 127
            tensors[f"{name}.scale"] = scale.cpu()
            block = (block.float() / scale).round_().to(torch.int8)
        tensors[name] = block.to(_TORCH[_NAMES[layout.dtype]]).cpu().contiguous()
    content = save(tensors)
    write_atomically(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return ShardRecord(path.name, len(shard.rows), len(content), checksum(content), digest)


def read_shard(folder: Path, layout: ShardLayout, record: ShardRecord) -> Shard:
    """The shard of ``record``; ``FileError`` naming it where it is missing or not what was written."""
    path = folder / record.file
    try:
        require_regular(path)
        size = path.stat().st_size
        if size != record.n_bytes:
            raise FileError(f"{path} has {size:,} bytes, {record.n_bytes:,} were written; {_ADVICE}")
        content = bytearray(size)
        with open(path, "rb", buffering=0) as file:
            view, n_read = memoryview(content), 0
            while n_read < size:
                n = file.readinto(view[n_read:])
                if not n:
                    raise FileError(f"{path} ended after {n_read:,} bytes; {_ADVICE}")
                n_read += n
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; {_ADVICE}") from error
    if checksum(content) != record.check:
        raise FileError(f"{path} is not what was written (its checksum differs); {_ADVICE}")
    try:
        tensors = _tensors(content, layout.header(record.n_rows))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not a shard of this cache: {first_line(error)}; {_ADVICE}") from error
    blocks = []
    for name, _ in layout.sites:
        block = tensors[name]
        blocks.append(block.float().mul_(tensors[f"{name}.scale"]) if layout.dtype == "int8" else block)
    rows = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return Shard(rows, *(tensors[name] for name in ORIGIN))


_ADVICE = "delete it and run the command that wrote the cache again (the rest is kept), or restore it from a copy"


def checksum(content: bytes | bytearray) -> str:
    """Exclusive or and sum of the content's 64-bit words, and its length: as fast as memory, so that every read can
    look. It finds any flipped bit, truncation and exchange; nothing made to deceive it."""
    whole = len(content) // 8 * 8
    words = np.frombuffer(content, dtype="<u8", count=whole // 8)
    rest = int.from_bytes(bytes(content[whole:]), "little")
    mixed = int(np.bitwise_xor.reduce(words)) ^ rest
    total = (int(np.add.reduce(words, dtype=np.uint64)) + rest) % 2**64
    return f"{mixed:016x}{total:016x}{len(content):x}"


def _tensors(content: bytearray, expected: dict[str, tuple[str, list[int]]]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which must have exactly the ``expected`` header. Raises ``ValueError``."""
    n_header = int.from_bytes(content[:8], "little")
    start = 8 + n_header
    if n_header > _MOST_HEADER_BYTES or start > len(content):
        raise ValueError("its header is too long")
    header = json.loads(content[8:start].decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    header.pop("__metadata__", None)
    if set(header) != set(expected):
        raise ValueError(f"it holds {sorted(header)[:8]}, not {sorted(expected)[:8]}")
    tensors = {}
    for name, (dtype, shape) in expected.items():
        entry = header[name]
        if not isinstance(entry, dict) or entry.get("dtype") != dtype or entry.get("shape") != shape:
            raise ValueError(f"{name} is not {dtype} {shape}")
        kind, n = _TORCH[dtype], math.prod(shape)
        size = n * torch.empty((), dtype=kind).element_size()
        offsets = entry.get("data_offsets")
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or any(type(each) is not int for each in offsets)
            or not 0 <= offsets[0] <= offsets[1] <= len(content) - start
            or offsets[1] - offsets[0] != size
        ):
            raise ValueError(f"{name} lies outside the file")
        tensors[name] = torch.frombuffer(content, dtype=kind, count=n, offset=start + offsets[0]).reshape(shape)
    return tensors
