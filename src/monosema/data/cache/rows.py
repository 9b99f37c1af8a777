"""``ActivationCache``: rows of a cache on disk as a source for training. No model is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosema.core.config import differences
from monosema.core.errors import ConfigError, DataError
from monosema.core.seeds import random_stream
from monosema.data.cache.manifest import read_manifest
from monosema.data.cache.shards import ShardRecord, read_shard
from monosema.data.sites import RowLayout

MIX_BYTES = 2**30
LEAST_MIXED = 8


class ActivationCache:
    """Rows of a cache, shuffled, resumable to the bit.

    Every epoch takes the shards in another order. As many as fit into ``mix_bytes``, at least eight, are read one after
    the other, each at the disk's sequential rate, and their rows are served permuted; what fills no batch is dropped
    and counted. Each shard's checksum is compared whenever it is read.

    Args:
        folder: what ``write_cache`` or ``monosema cache`` wrote.
        batch_size: rows in a batch.
        hook_names: the sites read, of those in the cache; those it was made for by default.
        targets: the sites written, where they are others.
        seed: decides the order.
        epochs: how often the cache may be read.
        mix_bytes: memory for the shards that are mixed.
        validation_fraction: share of the shards set aside, drawn by the seed.

    Raises:
        ConfigError: options that are out of range; a site that the cache does not hold (it lists those it does).
        FileError: no cache, one that is not finished, or a damaged one; the file is named (shards when they are read).
        DataError: too few rows for a batch, or for the run.
    """

    seekable = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        batch_size: int = 2048,
        *,
        hook_names: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        seed: int = 0,
        epochs: int = 1,
        mix_bytes: int = MIX_BYTES,
        validation_fraction: float = 0.0,
    ):
        if batch_size < 1 or epochs < 1 or mix_bytes < 1:
            raise ConfigError(
                f"batch_size, epochs and mix_bytes must be at least 1, got {batch_size}, {epochs} and {mix_bytes}"
            )
        if not 0 <= validation_fraction < 1:
            raise ConfigError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.layout, self._columns = self._choose(hook_names, targets)
        self.batch_size, self.seed, self.epochs = batch_size, seed, epochs
        self._mix_bytes, self._validation_fraction = mix_bytes, validation_fraction
        shards = self.manifest.shards
        order = torch.randperm(len(shards), generator=random_stream(seed, "validation")).tolist()
        n_aside = round(validation_fraction * len(shards))
        self._aside = [shards[number] for number in sorted(order[:n_aside])]
        self._served = [shards[number] for number in sorted(order[n_aside:])]
        if not self._groups(0):
            raise DataError(
                f"no group of shards in {self.folder} fills a batch of {batch_size} rows "
                f"({self.manifest.n_rows:,} rows in all); lower batch_size or raise mix_bytes"
            )
        self._epoch = self._group = self._offset = 0
        self.n_dropped = 0
        self._rows: Tensor | None = None
        self._order = torch.zeros(0, dtype=torch.int64)

    # -- what it is

    @property
    def d_in(self) -> int:
        return self.layout.d_in

    @property
    def d_out(self) -> int:
        return self.layout.d_out

    @property
    def n_rows(self) -> int:
        """Rows of an epoch, before what is dropped at the ends of groups."""
        return sum(shard.n_rows for shard in self._served)

    @property
    def n_validation(self) -> int:
        """How many rows are set aside."""
        return sum(shard.n_rows for shard in self._aside)

    @property
    def validation(self) -> Tensor:
        """The rows set aside ``[n_validation, d]``."""
        return self._read(self._aside)

    def plan(self, n_rows: int) -> None:
        """Refuse a run that the cache cannot serve."""
        available = sum(
            sum(shard.n_rows for shard in group) // self.batch_size * self.batch_size
            for epoch in range(self.epochs)
            for group in self._groups(epoch)
        )
        if n_rows > available:
            raise DataError(
                f"the run wants {n_rows:,} rows, the cache gives {available:,} in {self.epochs} epoch(s); set epochs= "
                "higher, lower tokens, or cache more"
            )

    def record(self) -> dict[str, Any]:
        """What a dictionary trained on these rows records about them: as if on the stream, and the cache."""
        return {
            **self.manifest.plan.stream,
            **self.layout.record(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "epochs": self.epochs,
            "cache": {"fingerprint": self.manifest.fingerprint, "dtype": self.manifest.plan.dtype},
        }

    # -- rows

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while self._rows is None or self._offset + self.batch_size > len(self._rows):
            if self._rows is not None:
                self.n_dropped += len(self._rows) - self._offset
                self._rows, self._offset = None, 0
                self._group += 1
            if not self._begin():
                raise StopIteration
        self._offset += self.batch_size
        # a copy: a view that the caller still has would keep the whole group while the next is read
        return self._rows[self._order[self._offset - self.batch_size : self._offset]]

    def preview(self, n_rows: int) -> Tensor:
        """At most ``n_rows`` of the first rows, without consuming them."""
        if self._rows is None and not self._begin():
            raise DataError("the cache is exhausted")
        assert self._rows is not None
        return self._rows[self._order[:n_rows]]

    def state_dict(self) -> dict[str, Any]:
        """Position; the group that is served is read again."""
        return {
            "epoch": self._epoch,
            "group": self._group,
            "offset": self._offset,
            "n_dropped": self.n_dropped,
            "identity": self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; ``DataError`` where the cache or the options are others."""
        different = differences(state["identity"], self._identity())
        if different:
            raise DataError("the saved state belongs to another cache; it differs in " + "; ".join(different))
        self._epoch, self._group, self._offset = (int(state[key]) for key in ("epoch", "group", "offset"))
        self.n_dropped, self._rows = int(state["n_dropped"]), None
        if self._offset > 0:
            self._begin()

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.manifest.fingerprint,
            "sites": list(self.layout.hook_names),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "mix_bytes": self._mix_bytes,
            "validation_fraction": self._validation_fraction,
        }

    def _groups(self, epoch: int) -> list[list[ShardRecord]]:
        """The shards of an epoch in its order, together as they are mixed; none where they fill no batch."""
        order = torch.randperm(len(self._served), generator=random_stream(self.seed, "shards", epoch)).tolist()
        shards = [self._served[number] for number in order]
        groups: list[list[ShardRecord]] = [[]]
        for shard in shards:
            group = groups[-1]
            if len(group) >= LEAST_MIXED and sum(each.n_bytes for each in [*group, shard]) > self._mix_bytes:
                groups.append([])
            groups[-1].append(shard)
        if len(groups) > 1 and len(groups[-1]) < LEAST_MIXED:
            last = groups.pop()
            groups[-1].extend(last)
        return [group for group in groups if sum(each.n_rows for each in group) >= self.batch_size]

    def _begin(self) -> bool:
        """Read the current group, or the first of the next epoch."""
        groups = self._groups(self._epoch) if self._epoch < self.epochs else []
        if self._group >= len(groups):
            self._epoch, self._group = self._epoch + 1, 0
            if self._epoch >= self.epochs:
                return False
            groups = self._groups(self._epoch)
        self._rows = self._read(groups[self._group])
        generator = random_stream(self.seed, "rows", self._epoch, self._group)
        self._order = torch.randperm(len(self._rows), generator=generator)
        return True

    def _read(self, shards: list[ShardRecord]) -> Tensor:
        layout = self.manifest.plan.shards
        parts = [read_shard(self.folder, layout, record).rows for record in shards]
        rows = torch.empty(sum(map(len, parts)), self.layout.width, dtype=parts[0].dtype)
        filled = len(rows)
        while parts:  # each is let go once it is copied, for memory of one group and not two
            part = parts.pop()
            filled -= len(part)
            rows[filled : filled + len(part)] = part if self._columns is None else part[:, self._columns]
        return rows

    def _choose(
        self, hook_names: str | Sequence[str] | None, targets: str | Sequence[str] | None
    ) -> tuple[RowLayout, Tensor | None]:
        """The layout of the sites asked for, and their columns; None for all as they are."""
        whole = self.manifest.plan.layout
        if hook_names is None and targets is None:
            return whole, None
        widths = dict(self.manifest.plan.shards.sites)
        reads = tuple(name for name, _ in whole.reads) if hook_names is None else _names(hook_names)
        writes = reads if targets is None else _names(targets)
        for name in (*reads, *writes):
            if name not in widths:
                raise ConfigError(f"{self.folder} holds no {name!r}; it has {', '.join(widths)}")
        starts, total = {}, 0
        for name, width in self.manifest.plan.shards.sites:
            starts[name], total = total, total + width
        wanted = reads if writes == reads else reads + writes
        columns = torch.cat([torch.arange(starts[name], starts[name] + widths[name]) for name in wanted])
        layout = RowLayout(
            tuple((name, widths[name]) for name in reads), tuple((name, widths[name]) for name in writes)
        )
        return layout, columns


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
