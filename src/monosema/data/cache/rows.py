"""``ActivationCache``: rows of a cache on disk as a source for training. No model is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monosema.core.config import differences
from monosema.core.errors import ConfigError, DataError
from monosema.core.facts import Facts, shown_as_facts
from monosema.core.memory import readable_bytes
from monosema.core.recycling import Recycler
from monosema.core.seeds import random_stream
from monosema.core.words import counted
from monosema.data.cache.expectations import ExpectedModel, check_model
from monosema.data.cache.groups import Group, group_bytes, read_group
from monosema.data.cache.opening import open_source
from monosema.data.cache.shards import CacheDtype, ShardRecord
from monosema.data.cache_config import CacheSource
from monosema.data.named_models import refuse_repeated_sites
from monosema.data.outliers import DEFAULT_MULTIPLE, MEDIAN_ROWS, NormRule, OutlierFilter, outlier_record
from monosema.data.prefetch import Prefetch
from monosema.data.sites import RowLayout

MIX_BYTES = 2**30
LEAST_MIXED = 8


@shown_as_facts
class ActivationCache:
    """Rows of a cache, shuffled, resumable to the bit.

    Every epoch takes the shards in another order. As many as fit into ``mix_bytes``, at least eight, are read one after
    the other, each at the disk's sequential rate, and their rows are served permuted; what fills no batch is dropped
    and counted. Each shard's checksum is compared whenever it is read. Rows stay in the cache's type until they are
    served (int8 is served as float32): memory is that of one group of shards, and of a second with ``prefetch``.

    Args:
        folder: what ``write_cache`` or ``monosema cache`` wrote, or sae-lens: a path, an fsspec URL, or the hub's name
            of a dataset repository (``owner/name``). Or drrik's: its folder, or a legacy pickle; what its rows are of
            is in ``source.samples``.
        batch_size: rows in a batch.
        hook_names: the sites read, of those in the cache; those it was made for by default.
        targets: the sites written, where they are others.
        seed: decides the order.
        epochs: how often the cache may be read.
        mix_bytes: memory for the shards that are mixed.
        validation_fraction: share of the shards set aside, drawn by the seed.
        prefetch: read the next group in a thread while one is served; changes no row.
        model: the model that the cache must be of: one, several by name, or a name.
        dtype: the type it must be stored in.
        outlier_norm_multiple: a row whose norm at a site exceeds so many times the median there is left out, and an
            ordinary row of its batch is served in its place; the median is of the first 4,096 rows in the first epoch's
            order. None leaves no row out. ``outliers`` has the rule and counts the rows left out; ``validation`` has
            all rows.
        revision, token: of a repository on the hub.

    Raises:
        ConfigError: options that are out of range; a site that the cache does not hold (it lists those it does); a
            cache of another model or type than those asked for.
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
        prefetch: bool = True,
        model: ExpectedModel | None = None,
        dtype: CacheDtype | None = None,
        outlier_norm_multiple: float | None = DEFAULT_MULTIPLE,
        revision: str | None = None,
        token: str | None = None,
    ):
        check_cache_options(batch_size, epochs, mix_bytes, validation_fraction)
        self.folder, self.revision = folder, revision
        self.source = open_source(folder, revision=revision, token=token)
        self.manifest = self.source.manifest
        if model is not None:
            check_model(self.manifest.plan.stream, model, str(folder))
        if dtype is not None and dtype != self.manifest.plan.dtype:
            raise ConfigError(f"{folder} is stored as {self.manifest.plan.dtype}, not {dtype}; leave out dtype=")
        self.layout = self._choose(hook_names, targets)
        self.outliers = OutlierFilter(outlier_norm_multiple, self.layout)
        self.batch_size, self.seed, self.epochs = batch_size, seed, epochs
        self.mix_bytes, self.validation_fraction = mix_bytes, validation_fraction
        shards = self.manifest.shards
        order = torch.randperm(len(shards), generator=random_stream(seed, "validation")).tolist()
        n_aside = round(validation_fraction * len(shards))
        self._aside = [shards[number] for number in sorted(order[:n_aside])]
        self._served = [shards[number] for number in sorted(order[n_aside:])]
        self._known_groups: dict[int, list[list[ShardRecord]]] = {}
        if not self._groups(0):
            raise DataError(
                f"no group of shards in {folder} fills a batch of {batch_size} rows "
                f"({self.manifest.n_rows:,} rows in all); lower batch_size or raise mix_bytes"
            )
        self.options = CacheSource(
            folder=os.fspath(folder),
            revision=revision,
            batch_size=batch_size,
            hook_names=tuple(name for name, _ in self.layout.reads),
            targets=None if self.layout.is_autoencoder else tuple(name for name, _ in self.layout.writes),
            seed=seed,
            epochs=epochs,
            mix_bytes=mix_bytes,
            validation_fraction=validation_fraction,
            outlier_norm_multiple=self.outliers.multiple,
            fingerprint=self.manifest.fingerprint,
        )
        """What opens the same rows again."""
        self._epoch = self._number = self._offset = 0
        self._last = (epochs, 0)
        self.n_dropped = 0
        self._group: Group | None = None
        self._spare: Tensor | None = None
        self._batches = Recycler()
        self._prefetch: Prefetch[Group] | None = Prefetch((), ()) if prefetch else None

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
        """The rows set aside ``[n_validation, d]``; ``DataError`` where there are none."""
        if not self._aside:
            raise DataError("no shards are set aside; give validation_fraction")
        return torch.cat(list(self.validation_shards()))

    def validation_shards(self) -> Iterator[Tensor]:
        """The same a shard at a time."""
        for number, record in enumerate(self._aside):
            group = self._reads([record], random_stream(self.seed, "aside", number))()
            yield group.served(0, len(group))

    def plan(self, n_rows: int) -> None:
        """Refuse a run that the cache cannot serve."""
        available, self._last = 0, (self.epochs, 0)
        for epoch in range(self.epochs):
            for number, group in enumerate(self._groups(epoch)):
                available += sum(shard.n_rows for shard in group) // self.batch_size * self.batch_size
                if available >= n_rows:
                    self._last = (epoch, number)
                    return
        raise DataError(
            f"the run wants {n_rows:,} rows, the cache gives {available:,} in {counted(self.epochs, 'epoch')}; set "
            "epochs= higher, lower tokens, or cache more"
        )

    def record(self) -> dict[str, Any]:
        """What a dictionary trained on these rows records about them: as if on the stream, and the cache."""
        return {
            **self.manifest.plan.stream,
            **self.layout.record(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "epochs": self.epochs,
            **outlier_record(self.outliers.rule),
            "cache": {"fingerprint": self.manifest.fingerprint, "dtype": self.manifest.plan.dtype},
        }

    def _facts(self) -> Facts:
        manifest = self.manifest
        return Facts(
            f"ActivationCache: {self.folder}",
            {
                **self.layout.facts,
                "rows": f"{self.n_rows:,}" + (f" and {self.n_validation:,} set aside" if self.n_validation else ""),
                "stored": f"{manifest.plan.dtype}, {readable_bytes(manifest.n_bytes)} in "
                f"{counted(len(manifest.shards), 'shard')}",
                "batch size": f"{self.batch_size:,}",
                "epochs": self.epochs,
                "seed": self.seed,
            },
        )

    # -- rows

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while self._group is None or self._offset + self.batch_size > len(self._group):
            if self._group is not None:
                self.n_dropped += len(self._group) - self._offset
                self._release()
                self._number += 1
            if not self._begin():
                raise StopIteration
        self._look_ahead()
        self._offset += self.batch_size
        rows = self._group.served(self._offset - self.batch_size, self._offset, self._batches.take)
        return self.outliers.served(rows, self._first_rows)

    def norm_rule(self) -> NormRule | None:
        """Which rows are left out; the first group is read where that is not known yet. None where none are."""
        if self.outliers.needs_rows:
            self.preview(1)
        return self.outliers.rule

    def _first_rows(self) -> Tensor:
        """Of the group that is served."""
        assert self._group is not None
        return self._group.served(0, MEDIAN_ROWS)

    def preview(self, n_rows: int) -> Tensor:
        """At most ``n_rows`` of the first rows, without consuming them."""
        if self._group is None and not self._begin():
            raise DataError("the cache is exhausted")
        assert self._group is not None
        return self.outliers.served(self._group.served(0, n_rows), self._first_rows, counts=False)

    def state_dict(self) -> dict[str, Any]:
        """Position; the group that is served is read again."""
        return {
            "epoch": self._epoch,
            "group": self._number,
            "offset": self._offset,
            "n_dropped": self.n_dropped,
            "outliers": self.outliers.state_dict(),
            "identity": self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; ``DataError`` where the cache or the options are others."""
        different = differences(state["identity"], self._identity())
        if different:
            raise DataError("the saved state belongs to another cache; it differs in " + "; ".join(different))
        if self._prefetch is not None:
            self._prefetch.drop()
        self._group = None
        self._epoch, self._number, self._offset = (int(state[key]) for key in ("epoch", "group", "offset"))
        self.n_dropped = int(state["n_dropped"])
        self.outliers.load_state_dict(state.get("outliers", {}))
        if self._offset > 0:
            self._begin()

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.manifest.fingerprint,
            "sites": list(self.layout.hook_names),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "mix_bytes": self.mix_bytes,
            "validation_fraction": self.validation_fraction,
            **({} if self.outliers.multiple is None else {"outlier_norm_multiple": self.outliers.multiple}),
        }

    # -- groups

    def _groups(self, epoch: int) -> list[list[ShardRecord]]:
        """The shards of an epoch in its order, together as they are mixed; none where they fill no batch."""
        if epoch not in self._known_groups:
            known = {each: groups for each, groups in self._known_groups.items() if each == epoch - 1}
            self._known_groups = {**known, epoch: self._make_groups(epoch)}
        return self._known_groups[epoch]

    def _make_groups(self, epoch: int) -> list[list[ShardRecord]]:
        order = torch.randperm(len(self._served), generator=random_stream(self.seed, "shards", epoch)).tolist()
        groups: list[list[ShardRecord]] = [[]]
        size = 0
        for number in order:
            shard = self._served[number]
            if len(groups[-1]) >= LEAST_MIXED and size + shard.n_bytes > self.mix_bytes:
                groups.append([])
                size = 0
            groups[-1].append(shard)
            size += shard.n_bytes
        if len(groups) > 1 and len(groups[-1]) < LEAST_MIXED:
            last = groups.pop()
            groups[-1].extend(last)
        return [group for group in groups if sum(each.n_rows for each in group) >= self.batch_size]

    def _begin(self) -> bool:
        """Take up the current group, or the first of the next epoch."""
        if self._epoch < self.epochs and self._number >= len(self._groups(self._epoch)):
            self._epoch, self._number = self._epoch + 1, 0
        if self._epoch >= self.epochs:
            return False
        coming = None if self._prefetch is None else self._prefetch.take()
        self._group = self._reader(self._epoch, self._number)() if coming is None else coming
        if self.outliers.needs_rows:
            self.outliers.estimate([self._first_rows()])
        return True

    def _look_ahead(self) -> None:
        """Begin to read the group after the one that is served."""
        if self._prefetch is None or not self._prefetch.is_idle:
            return
        place = self._epoch, self._number + 1
        if place[1] >= len(self._groups(self._epoch)):
            place = self._epoch + 1, 0
        if place[0] < self.epochs and place <= self._last:
            self._prefetch.start(self._reader(*place))

    def _release(self) -> None:
        assert self._group is not None
        self._spare, self._group, self._offset = self._group.memory, None, 0

    def _reader(self, epoch: int, number: int) -> Callable[..., Group]:
        """What reads a group; into the memory of the one served last, which the system need not find again."""
        records = self._groups(epoch)[number]
        memory, self._spare = self._spare, None
        n_rows = sum(record.n_rows for record in records)
        needed = group_bytes(self.manifest.plan.shards, self.layout.hook_names, n_rows)
        if memory is not None and len(memory) < needed:
            memory = None  # given back before more is taken
        return self._reads(records, random_stream(self.seed, "rows", epoch, number), memory)

    def _reads(
        self, records: Sequence[ShardRecord], generator: torch.Generator, memory: Tensor | None = None
    ) -> Callable[..., Group]:
        return partial(read_group, self.source, records, self.layout.hook_names, generator, memory)

    def _choose(self, hook_names: str | Sequence[str] | None, targets: str | Sequence[str] | None) -> RowLayout:
        """The layout of the sites asked for."""
        whole = self.manifest.plan.layout
        if hook_names is None and targets is None:
            return whole
        widths = dict(self.manifest.plan.shards.sites)
        reads = tuple(name for name, _ in whole.reads) if hook_names is None else _names(hook_names)
        writes = reads if targets is None else _names(targets)
        for name in (*reads, *writes):
            if name not in widths:
                raise ConfigError(f"{self.folder} holds no {name!r}; it has {', '.join(widths)}")
        return RowLayout(tuple((name, widths[name]) for name in reads), tuple((name, widths[name]) for name in writes))


def check_cache_options(batch_size: int, epochs: int, mix_bytes: int, validation_fraction: float) -> None:
    """Raise ``ConfigError`` for an option of a cache that is out of range."""
    if batch_size < 1 or epochs < 1 or mix_bytes < 1:
        raise ConfigError(
            f"batch_size, epochs and mix_bytes must be at least 1, got {batch_size}, {epochs} and {mix_bytes}"
        )
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    refuse_repeated_sites(names)
    return names
