"""A safetensors file written as it is hashed, one tensor at a time: nothing is held twice in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write ``tensors`` of any device to ``path``; returns the file's sha256. Raises ``OSError``.

    The library's ``save_file`` turns a full disk into an error of its own.
    """
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for piece in file_pieces(tensors):
            digest.update(piece)
            n_written = 0
            while n_written < len(piece):
                n_written += file.write(piece[n_written:])
    return digest.hexdigest()


def file_pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a safetensors file of ``tensors``: the header, then one tensor after the other.

    Those on the CPU are not copied; the library's ``save`` copies the whole file thrice.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each lies aligned
    header: dict[str, object] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        yield _bytes_of(tensors[name])


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
