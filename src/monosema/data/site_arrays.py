"""Arrays of activations by site, read side by side as rows of the same tokens, and told apart by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any, final
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from monosema.coders.sites import is_one_name
from monosema.core.devices import dtype_name
from monosema.core.errors import ConfigError, DataError, FileError
from monosema.core.files import require_regular
from monosema.core.finite import all_finite
from monosema.core.words import counted
from monosema.data.sites import RowLayout, layout_of

DIGEST_BYTES = 2**28
"""Up to so many bytes, of all arrays together, every row is in the digest."""
DIGEST_ROWS = 4096
"""Beyond them, so many rows of each array."""
_STEP_BYTES = 2**24
_DAMAGED = (TokenError, SyntaxError, BadZipFile)
"""What NumPy says of damaged headers, beside ``ValueError``."""

Array = np.ndarray | Tensor


@final
class SiteArrays:
    """Rows ``[n, d]`` of one array, or of several that hold different sites of the same tokens in the same order.

    Arguments as of ``ArrayRows``. No array is copied whole.
    """

    def __init__(self, source: Any, targets: Any = None, d_in: int | None = None):
        several = isinstance(source, Mapping)
        if d_in is not None and (several or targets is not None):
            raise ConfigError("d_in splits the columns of one array into input and target; with several, leave it out")
        if targets is not None and isinstance(targets, Mapping) != several:
            raise ConfigError("give arrays and targets both as {site: array}, or both as one array without a name")
        reads = _by_site(source) if several else {"input": _as_array(source)}
        writes = {}
        if targets is not None:
            writes = _by_site(targets) if several else {"target": _as_array(targets)}
        twice = sorted(reads.keys() & writes.keys())
        if twice:
            raise ConfigError(f"{', '.join(map(repr, twice))} is given as an array and as a target; leave one out")
        self._arrays: dict[str, Array] = {**reads, **writes}
        _check_same_tokens(self._arrays)
        read, written = (tuple((name, each.shape[1]) for name, each in part.items()) for part in (reads, writes))
        one = not several and targets is None
        self.layout: RowLayout = layout_of(read[0][1], d_in) if one else RowLayout(read, written or read)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, d)``, all sites side by side."""
        return len(next(iter(self._arrays.values()))), self.layout.width

    def take(self, rows: np.ndarray) -> Tensor:
        """``rows`` ``[len(rows), d]``, in the type that holds every array's, on the first one's device.

        Raises ``DataError`` where a value is not finite.
        """
        parts = {name: _rows_of(array, rows) for name, array in self._arrays.items()}
        for name, part in parts.items():
            if not all_finite(part):
                which = f" {name!r}" if len(parts) > 1 else ""
                raise DataError(f"the array{which} holds values that are not finite; remove those rows first")
        first = next(iter(parts.values()))
        return first if len(parts) == 1 else torch.cat([part.to(first.device) for part in parts.values()], 1)

    @cached_property
    def digest(self) -> str:
        """BLAKE2b of types, shapes and rows, as hexadecimals: every row up to ``DIGEST_BYTES``, else ``DIGEST_ROWS``.

        Those are evenly spaced, the first and the last among them. So any change of smaller arrays shows; of larger
        ones, other or reordered activations do, while a change of single rows may fall between those read. Of ``m``
        rows changed at random among ``n``, all are missed with probability about ``(1 - DIGEST_ROWS / n)^m``. Computed
        once; an array changed in place afterwards keeps it.
        """
        hashed = hashlib.blake2b(digest_size=16)
        n, is_whole = self.shape[0], sum(_n_bytes(array) for array in self._arrays.values()) <= DIGEST_BYTES
        chosen = np.arange(n)
        if not is_whole and n > DIGEST_ROWS:
            chosen = np.linspace(0, n - 1, DIGEST_ROWS).round().astype(np.int64)
        for array in self._arrays.values():
            step = max(1, _STEP_BYTES * n // max(1, _n_bytes(array)))
            hashed.update(f"{dtype_name(_rows_of(array, chosen[:1]).dtype)} {list(array.shape)}".encode())
            for start in range(0, len(chosen), step):
                part = _rows_of(array, chosen[start : start + step]).contiguous()
                hashed.update(part.view(torch.uint8).cpu().numpy().data)
        return hashed.hexdigest()


def _by_site(arrays: Mapping[Any, Any]) -> dict[str, Array]:
    if not arrays:
        raise ConfigError("the mapping of arrays is empty; give at least one, as in {'blocks.0.hook_mlp_out': array}")
    for name in arrays:
        if not isinstance(name, str) or not is_one_name(name):
            raise ConfigError(f"{name!r} cannot name a site: a name is a string that is not empty, without '+'")
    return {name: _as_array(array, name) for name, array in arrays.items()}


def open_npy(path: str | Path, what: str = "an array") -> np.ndarray:
    """The array in a ``.npy`` file, memory-mapped; ``FileError`` where it is none or damaged."""
    try:
        require_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileError:
        raise
    except (OSError, ValueError, TypeError, OverflowError, EOFError, MemoryError, *_DAMAGED) as error:
        raise FileError(f"cannot read {what} from {path}: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise FileError(f"cannot read {what} from {path}: it holds several arrays; give one .npy file")
    return array


def _as_array(array: Any, name: str = "") -> Array:
    of_site = f" of {name!r}" if name else ""
    path = array if isinstance(array, (str, Path)) else None
    if path is not None:
        array = open_npy(path, f"activations{of_site}")
    if not isinstance(array, (np.ndarray, Tensor)):
        raise DataError(
            f"activations{of_site} must be a tensor, an array or the path of a .npy file, got {type(array).__name__}"
        )
    is_float = array.dtype.is_floating_point if isinstance(array, Tensor) else array.dtype.kind == "f"
    if isinstance(array, np.ndarray):
        is_float = is_float and array.itemsize <= 8 and array.dtype.isnative
    if array.ndim < 2 or not is_float or 0 in array.shape:
        where = f" in {path}" if path is not None else ""
        raise DataError(
            f"activations{of_site}{where} must be floating-point [n, d], got {array.dtype} {list(array.shape)}"
        )
    return (array.detach() if isinstance(array, Tensor) else array).reshape(-1, array.shape[-1])


def _check_same_tokens(arrays: Mapping[str, Array]) -> None:
    (first, n), *others = ((name, len(array)) for name, array in arrays.items())
    different = [f"{name!r} has {count:,}" for name, count in others if count != n]
    if different:
        raise DataError(
            f"arrays must hold the same tokens, a row for each: {first!r} has {counted(n, 'row')}, "
            f"{', '.join(different)}"
        )


def _n_bytes(array: Array) -> int:
    return array.numel() * array.element_size() if isinstance(array, Tensor) else array.nbytes


def _rows_of(array: Array, rows: np.ndarray) -> Tensor:
    if isinstance(array, Tensor):
        return array[torch.from_numpy(rows).to(array.device)]
    return torch.from_numpy(np.ascontiguousarray(array[rows]))
