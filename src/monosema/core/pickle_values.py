"""The few classes whose pickled values are made again: arrays, numbers and types of NumPy and torch, sets, paths.

Every value is made here from parts that were looked at first; nothing is imported or called by a name in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any, final

import numpy as np
import torch

_LEAST_BYTES = 2**16
_MOST_DIMENSIONS = 32
_MOST_SIZE = 2**62
_DTYPE = re.compile(r"[<>=|]?(\?|[biufcSU]\d{0,9})")
_TORCH_DTYPES = {f"torch.{name}": each for name, each in vars(torch).items() if isinstance(each, torch.dtype)}
_PATHS = {"PosixPath": PurePosixPath, "PurePosixPath": PurePosixPath} | {
    "WindowsPath": PureWindowsPath,
    "PureWindowsPath": PureWindowsPath,
}


class PickleRefusedError(ValueError):
    """A pickle that is damaged, or holds what is not read; the message goes on from the file's name."""


@final
@dataclass(eq=False)
class ForeignRecord:
    """What a pickle says of a class, a function or an instance that is not made: inert."""

    name: str
    """Module and name, ``"torch.nn.Linear"``; what was called, where this is the result of a call."""
    fields: dict[Any, Any] = field(default_factory=dict)
    """Attributes of an instance; ``"__state__"`` where its state is no mapping."""
    args: tuple[Any, ...] = ()
    """What it would have been called with; keyword arguments, if any, as a mapping at the end."""
    items: list[Any] = field(default_factory=list)
    """What was put into it: elements, or (key, value)."""


@final
class Values:
    """Makes values for one pickle of ``n_bytes``, and no more of them than its bytes and operations account for.

    A pickle may name one part of it any number of times; only what is copied is counted.
    """

    def __init__(self, n_bytes: int):
        self._bytes_left = 2 * n_bytes + _LEAST_BYTES
        self.elements_left = 0
        """Elements of containers that may still be copied; the reader adds one for each operation."""
        self._unfinished: dict[int, Any] = {}

    def named(self, name: str) -> Any:
        """What ``module.name`` stands for: a torch dtype, else a record."""
        return _TORCH_DTYPES.get(name) or ForeignRecord(name)

    def called(self, name: str, args: tuple[Any, ...]) -> Any:
        """The value that a call of ``name`` makes; a record where it is not one of those known."""
        maker = _MAKERS.get(name)
        return ForeignRecord(name, args=args) if maker is None else maker(self, *args)

    def build(self, value: Any, state: Any) -> None:
        """Give ``value`` its state. Attributes of lists, mappings and sets are left out."""
        if isinstance(value, ForeignRecord):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # the second: of __slots__
            if not all(part is None or isinstance(part, dict) for part in parts):
                parts = ({"__state__": state},)
            for part in parts:
                self.copy_elements(len(part or ()))
                value.fields.update(part or {})
        elif isinstance(value, np.dtype):
            self._build_dtype(value, state)
        elif isinstance(value, np.ndarray):
            self._build_array(value, state)
        elif not isinstance(value, list | dict | set):
            raise PickleRefusedError(f"it gives a {type(value).__name__} a state")

    def copy_elements(self, n: int) -> None:
        self.elements_left -= n
        if self.elements_left < 0:
            raise PickleRefusedError("it would take far more memory than its size")

    def _copy_bytes(self, n: int) -> None:
        self._bytes_left -= n
        if self._bytes_left < 0:
            raise PickleRefusedError("it would take far more memory than its size")

    # -- of the language

    def encoded(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise PickleRefusedError(f"it encodes text as {str(encoding)[:20]!r}")
        self._copy_bytes(len(text))
        return text.encode("latin-1")

    def bytes_of(self, content: Any = b"") -> bytes:
        if not isinstance(content, bytes):
            raise PickleRefusedError("it makes bytes of something else")
        return content

    def bytearray_of(self, content: Any = b"", encoding: Any = None) -> bytearray:
        plain = self.bytes_of(content) if encoding is None else self.encoded(content, encoding)
        self._copy_bytes(len(plain))
        return bytearray(plain)

    def complex_of(self, real: Any, imaginary: Any) -> complex:
        if not isinstance(real, float) or not isinstance(imaginary, float):
            raise PickleRefusedError("a complex number's parts are no numbers")
        return complex(real, imaginary)

    def set_of(self, items: Any = ()) -> set[Any]:
        return set(self._keys(items))

    def frozenset_of(self, items: Any = ()) -> frozenset[Any]:
        return frozenset(self._keys(items))

    def dict_of(self, pairs: Any = ()) -> dict[Any, Any]:
        self.copy_elements(len(_sequence(pairs)))
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise PickleRefusedError("a mapping is made of what are no pairs")
        return {key_of(key): value for key, value in pairs}

    def default_dict(self, factory: Any = None, pairs: Any = ()) -> dict[Any, Any]:
        return self.dict_of(pairs)

    def _keys(self, items: Any) -> list[Any]:
        self.copy_elements(len(_sequence(items)))
        return [key_of(item) for item in items]

    def instance(self, kind: Any, base: Any, state: Any) -> ForeignRecord:
        """How protocols 0 and 1 make an instance of a class."""
        if not isinstance(kind, ForeignRecord):
            raise PickleRefusedError("it makes an instance of what is no class")
        return ForeignRecord(kind.name, args=() if state is None else (state,))

    def path(self, kind: type[PurePath], *parts: Any) -> PurePath:
        if not all(isinstance(part, str) for part in parts):
            raise PickleRefusedError("a path's parts are no texts")
        self._copy_bytes(sum(map(len, parts)))
        return kind(*parts)

    # -- of torch

    def device(self, kind: Any, index: Any = None) -> torch.device:
        if not isinstance(kind, str) or len(kind) > 50 or not (index is None or type(index) is int):
            raise PickleRefusedError("a torch device is damaged")
        try:
            return torch.device(kind) if index is None else torch.device(kind, index)
        except RuntimeError as error:
            raise PickleRefusedError(f"a torch device is damaged: {error}") from error

    def size(self, sizes: Any = ()) -> torch.Size:
        return torch.Size(_shape(sizes))

    # -- of NumPy

    def dtype(self, spec: Any, *options: Any) -> np.dtype[Any]:
        if not isinstance(spec, str) or not _DTYPE.fullmatch(spec):
            what = "Python objects" if str(spec).strip("|")[:1] == "O" else f"type {str(spec)[:50]!r}"
            raise PickleRefusedError(f"it holds a NumPy array of {what}, which are not read")
        made: np.dtype[Any] = np.dtype(spec, align=False, copy=True)
        self._unfinished[id(made)] = made
        return made

    def _build_dtype(self, value: np.dtype[Any], state: Any) -> None:
        if self._unfinished.pop(id(value), None) is None or not isinstance(state, tuple) or len(state) < 5:
            raise PickleRefusedError("a NumPy type is damaged")
        order, inner = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or inner != (None, None, None):
            raise PickleRefusedError("it holds a NumPy array with fields, which are not read")
        is_text = value.kind in "SU"
        sizes = (value.itemsize, value.alignment) if is_text else (-1, -1)
        value.__setstate__((3, order, None, None, None, *sizes, 0))  # type: ignore[attr-defined]

    def reconstructed(self, kind: Any, *rest: Any) -> np.ndarray:
        if not isinstance(kind, ForeignRecord) or kind.name not in ("numpy.ndarray", "numpy.memmap"):
            raise PickleRefusedError(
                f"it holds an array of kind {getattr(kind, 'name', kind)!s:.50}, which is not read"
            )
        made = np.empty(0, np.int8)
        self._unfinished[id(made)] = made
        return made

    def _build_array(self, value: np.ndarray, state: Any) -> None:
        if self._unfinished.pop(id(value), None) is None or not isinstance(state, tuple) or len(state) not in (4, 5):
            raise PickleRefusedError("a NumPy array is damaged")
        shape, dtype, is_fortran, content = state[-4:]
        if isinstance(content, str):  # Python 2 had no bytes
            content = self.encoded(content, "latin1")
        self._check_content(content, dtype, shape)
        self._copy_bytes(len(content))
        value.__setstate__((1, shape, dtype, bool(is_fortran), content))  # type: ignore[arg-type]

    def from_buffer(self, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        self._check_content(content, dtype, shape)
        made = np.frombuffer(content, dtype) if len(content) else np.empty(0, dtype)
        if order == "K" and axes is not None:
            return made.reshape(shape).transpose(_shape(axes))
        return made.reshape(shape, order="F" if order == "F" else "C")

    def scalar(self, dtype: Any, content: Any) -> Any:
        if isinstance(content, str):
            content = self.encoded(content, "latin1")
        self._check_content(content, dtype, ())
        self._copy_bytes(len(content))
        return np.frombuffer(content, dtype)[0]

    def _check_content(self, content: Any, dtype: Any, shape: Any) -> None:
        if not isinstance(dtype, np.dtype) or id(dtype) in self._unfinished:
            raise PickleRefusedError("a NumPy array has no type")
        if not isinstance(content, bytes | bytearray):
            raise PickleRefusedError("a NumPy array's content is no bytes")
        size = math.prod(_shape(shape)) * dtype.itemsize
        if not dtype.itemsize or size != len(content):
            raise PickleRefusedError(f"a NumPy array of {size:,} bytes has {len(content):,}")


def key_of(value: Any) -> Any:
    """``value``, where it can be a key whose hash takes no time to speak of."""
    parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        is_plain = isinstance(part, _KEYS) and not (isinstance(part, int) and part.bit_length() > 64)
        if not is_plain:
            raise PickleRefusedError(f"a {type(part).__name__} is a key of a mapping or in a set")
    return value


_KEYS = (str, bytes, int, float, complex, type(None), np.generic, PurePath, torch.dtype, torch.device, ForeignRecord)


def _sequence(items: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise PickleRefusedError(f"a container is made of a {type(items).__name__}")
    return items


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or len(sizes) > _MOST_DIMENSIONS:
        raise PickleRefusedError("a shape is no tuple of sizes")
    if not all(type(size) is int and 0 <= size < _MOST_SIZE for size in sizes):
        raise PickleRefusedError("a shape is no tuple of sizes")
    return sizes


def _path_maker(kind: type[PurePath]) -> Callable[..., PurePath]:
    return lambda values, *parts: values.path(kind, *parts)


_MAKERS: dict[str, Callable[..., Any]] = {
    **{f"{home}.{name}": _path_maker(kind) for home in ("pathlib", "pathlib._local") for name, kind in _PATHS.items()},
    "_codecs.encode": Values.encoded,
    "builtins.bytes": Values.bytes_of,
    "builtins.bytearray": Values.bytearray_of,
    "builtins.complex": Values.complex_of,
    "builtins.set": Values.set_of,
    "builtins.frozenset": Values.frozenset_of,
    "collections.OrderedDict": Values.dict_of,
    "collections.defaultdict": Values.default_dict,
    "copyreg._reconstructor": Values.instance,
    "numpy.dtype": Values.dtype,
    "numpy._core.multiarray._reconstruct": Values.reconstructed,
    "numpy._core.multiarray.scalar": Values.scalar,
    "numpy._core.numeric._frombuffer": Values.from_buffer,
    "torch.device": Values.device,
    "torch.Size": Values.size,
}
