"""Shards that are read together and served mixed, kept in the cache's own type until then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monosema.data.cache.shards import ShardLayout, ShardRecord
from monosema.data.cache.sources import ShardSource

_ALIGNMENT = 64


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

    def served(self, start: int, stop: int) -> Tensor:
        """A copy of the rows ``start`` to ``stop`` in the order of serving ``[stop - start, d]``; int8 as float32."""
        rows = self.order[start:stop]
        if not self.scales and len(self.sites) == 1:
            return _taken(self.sites[0], rows)
        taken = self.sites[0].new_empty(
            len(rows), sum(site.shape[1] for site in self.sites), dtype=torch.float32 if self.scales else None
        )
        shards = torch.bucketize(rows, self.ends, right=True)
        column = 0
        for number, site in enumerate(self.sites):
            part = taken[:, column : column + site.shape[1]]
            part.copy_(_taken(site, rows))
            if self.scales:
                part.mul_(self.scales[number].index_select(0, shards))
            column += site.shape[1]
        return taken


def _taken(site: Tensor, rows: Tensor) -> Tensor:
    """``site[rows]``, in words of eight bytes where rows consist of such: three times as fast for bfloat16."""
    words = site.view(torch.int64) if site.shape[1] * site.itemsize % 8 == 0 else site
    return words.index_select(0, rows).view(site.dtype)


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
    """Read ``sites`` of the shards, one file after the other, into ``memory`` (of ``group_bytes`` or more), if any.

    ``generator`` draws the order of serving; ``go_on`` is called before every shard and may raise to end it all.
    """
    layout = source.manifest.plan.shards
    for record in records:
        source.require(record)
    n_rows, start, arrays = sum(record.n_rows for record in records), 0, {}
    if memory is None:
        # NumPy asks the system for large pages, which come a third sooner
        memory = torch.from_numpy(np.empty(group_bytes(layout, sites, n_rows), dtype=np.uint8))
    for name in sites:
        end = start + group_bytes(layout, [name], n_rows)
        width = dict(layout.sites)[name]
        used = memory[start : start + n_rows * width * layout.torch_dtype.itemsize]
        arrays[name], start = used.view(layout.torch_dtype).view(n_rows, width), end
    is_scaled = layout.dtype == "int8"
    scales = {name: torch.empty(len(records), arrays[name].shape[1]) for name in sites} if is_scaled else {}
    row, ends = 0, []
    for number, record in enumerate(records):
        go_on()
        targets = {name: array[row : row + record.n_rows] for name, array in arrays.items()}
        targets |= {f"{name}.scale": scale[number] for name, scale in scales.items()}
        source.read_into(record, targets)
        row += record.n_rows
        ends.append(row)
    order = torch.randperm(n_rows, generator=generator)
    return Group(memory, tuple(arrays.values()), tuple(scales.values()), torch.tensor(ends), order)
