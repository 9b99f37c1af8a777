"""A safetensors file, or an error that names it and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from monosema.core.errors import FileError
from monosema.core.files import require_regular

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}


def read_tensors(path: Path, integers: Iterable[str] = ()) -> dict[str, Tensor]:
    """All tensors in ``path``: floating-point numbers of 16, 32 or 64 bits; those named in ``integers`` whole numbers.

    Raises ``FileError`` where the file is missing, cut short or something else, and for a tensor of another type, such
    as float8, which can be stored but not computed in, naming it.
    """
    fix = "download or copy it again (ms.load(..., force_download=True) for what came from the hub), or save it anew"
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
