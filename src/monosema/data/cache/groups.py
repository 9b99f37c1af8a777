"""Shards that are read together and served mixed, kept in the cache's own type until then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from monosema.core.sharing import share
from monosema.data.cache.shards import ShardLayout, ShardRecord
from monosema.data.cache.sources import ShardSource

_ALIGNMENT = 64
_READERS = 2


def new_bytes(n: int) -> Tensor:
    """``[n]`` uint8 with any content."""
    # NumPy asks the system for large pages, which come a third sooner
    return torch.from_numpy(np.empty(n, dtype=np.uint8))


@dataclass(frozen=True)
class Group:
    """The rows of some shards."""

    memory: Tensor
    """Bytes that ``sites`` lie in."""
    sites: tuple[Tensor, ...]
    """For each site wanted ``[n, width]``, as stored."""
    scales: tuple[Tensor, ...]
    """For each of them ``[n_shards, width]`` float32, where it is stored as int8."""
    ends: Tensor
    """``[n_shards]``: the row behind each shard's last."""
    order: Tensor
    """``[n]``: a permutation of the rows."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.memory, self.order

    def served(self, start: int, stop: int, room: Callable[[int], Tensor] = new_bytes) -> Tensor:
        """A copy of the rows ``start`` to ``stop`` in the order of serving ``[stop - start, d]``; int8 as float32.

        ``room`` gives so many bytes for it.
        """
        rows, dtype = self.order[start:stop], torch.float32 if self.scales else self.sites[0].dtype
        width = sum(site.shape[1] for site in self.sites)
        taken = room(len(rows) * width * dtype.itemsize).view(dtype).view(len(rows), width)
        if not self.scales and len(self.sites) == 1:
            torch.index_select(_words(self.sites[0]), 0, rows, out=_words(taken))
            return taken
        shards = torch.bucketize(rows, self.ends, right=True)
        column = 0
        for number, site in enumerate(self.sites):
            part = taken[:, column : column + site.shape[1]]
            part.copy_(_words(site).index_select(0, rows).view(site.dtype))
            if self.scales:
                part.mul_(self.scales[number].index_select(0, shards))
            column += site.shape[1]
        return taken


def _words(site: Tensor) -> Tensor:
    """``site`` in words of eight bytes, where rows consist of such: gathered three times as fast as bfloat16."""
    return site.view(torch.int64) if site.shape[1] * site.itemsize % 8 == 0 else site


def group_bytes(layout: ShardLayout, sites: Sequence[str], n_rows: int) -> int:
    """Memory for ``n_rows`` of ``sites``."""
    widths = dict(layout.sites)
    size = layout.torch_dtype.itemsize
    return sum(-(-n_rows * widths[name] * size // _ALIGNMENT) * _ALIGNMENT for name in sites)


def read_group(
    source: ShardSource,
    records: Sequence[ShardRecord],
    sites: Sequence[str],
    generator: torch.Generator,
    memory: Tensor | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> Group:
    """Read ``sites`` of the shards, two files at a time, each from end to end, into ``memory`` (of ``group_bytes`` or
    more), if any.

    ``generator`` draws the order of serving; ``go_on`` is called before every shard and may raise to end it all.
    """
    layout = source.manifest.plan.shards
    for record in records:
        source.require(record)
    n_rows, start, arrays = sum(record.n_rows for record in records), 0, {}
    if memory is None:
        memory = new_bytes(group_bytes(layout, sites, n_rows))
    for name in sites:
        end = start + group_bytes(layout, [name], n_rows)
        width = dict(layout.sites)[name]
        used = memory[start : start + n_rows * width * layout.torch_dtype.itemsize]
        arrays[name], start = used.view(layout.torch_dtype).view(n_rows, width), end
    is_scaled = layout.dtype == "int8"
    scales = {name: torch.empty(len(records), arrays[name].shape[1]) for name in sites} if is_scaled else {}
    ends = list(accumulate(record.n_rows for record in records))

    def read(number: int) -> None:
        go_on()
        record = records[number]
        targets = {name: array[ends[number] - record.n_rows : ends[number]] for name, array in arrays.items()}
        targets |= {f"{name}.scale": scale[number] for name, scale in scales.items()}
        source.read_into(record, targets)

    share((partial(read, number) for number in range(len(records))), _READERS)
    order = torch.randperm(n_rows, generator=generator)
    return Group(memory, tuple(arrays.values()), tuple(scales.values()), torch.tensor(ends), order)
