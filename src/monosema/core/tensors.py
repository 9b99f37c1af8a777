"""Safetensors files: written as they are hashed, one tensor at a time, and read with an error that says what to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from monosema.core.errors import FileError
from monosema.core.files import require_regular

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
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}


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


def read_tensors(path: Path, integers: Iterable[str] = ()) -> dict[str, Tensor]:
    """All tensors in ``path``: floating-point numbers of 16, 32 or 64 bits; those named in ``integers`` whole numbers.

    Raises ``FileError`` where the file is missing, cut short or something else, and for a tensor of another type, such
    as float8, which can be stored but not computed in, naming it.
    """
    fix = "download or copy it again (ms.load(..., force_download=True) for what came from the hub), or save it again"
    try:
        require_regular(path)
        _require_types(path, frozenset(integers))
        return load_file(path)
    except FileNotFoundError as error:
        raise FileError(f"no {path.name} in {path.parent}; {fix}") from error
    except (SafetensorError, KeyError, RuntimeError) as error:  # the latter: types and shapes that torch has not
        raise FileError(
            f"cannot read {path}: the file is cut short or is no safetensors file ({error}); {fix}"
        ) from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _require_types(path: Path, integers: frozenset[str]) -> None:
    """``FileError`` for a tensor whose type is not one of those expected, by the file's header alone."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            found = file.get_slice(name).get_dtype()
            known = _INTEGERS if name in integers else _FLOATS
            if found not in known:
                kind = "whole numbers" if name in integers else "floating-point numbers"
                raise FileError(
                    f"{path}: the tensor {name!r:.200} is of type {found}; {kind} of the types "
                    f"{', '.join(known.values())} are expected: convert it to one of them, with its scale where it has "
                    "one, and save the file again"
                )
