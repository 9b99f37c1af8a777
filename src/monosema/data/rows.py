"""Rows that come from no model: arrays, memory-mapped files, loaders and iterators of activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosema.core.config import differences
from monosema.core.errors import ConfigError, DataError
from monosema.core.facts import Facts, shown_as_facts
from monosema.core.finite import all_finite
from monosema.core.seeds import random_stream
from monosema.core.words import counted
from monosema.data.outliers import DEFAULT_MULTIPLE, MEDIAN_ROWS, NormRule, OutlierFilter, outlier_record
from monosema.data.site_arrays import SiteArrays
from monosema.data.sites import layout_of


@shown_as_facts
class ArrayRows:
    """Rows ``[n, d]`` of tensors, arrays or memory-mapped ``.npy`` files: shuffled each epoch, resumable to the bit.

    No array is ever copied whole; a share of the rows can be set aside as ``validation`` rows. Several arrays are
    several sites of the same tokens: row ``i`` of each is token ``i``, they are shuffled and set aside alike, and a
    batch has them side by side, in the order of the mapping.

    - an SAE: ``ArrayRows(x)``, or ``ArrayRows({"blocks.6.hook_resid_post": x})``, which names the site;
    - a transcoder: ``ArrayRows(x, targets=y)``, or one array with input and target side by side and ``d_in=``;
    - a crosscoder: ``ArrayRows({"blocks.5.hook_resid_post": a, "blocks.6.hook_resid_post": b})``;
    - a cross-layer transcoder: ``ArrayRows({"blocks.0.mlp.hook_in": a, …}, targets={"blocks.0.hook_mlp_out": c, …})``.

    A run that is resumed must be given the same rows: shapes, types and content are compared, by a digest of all rows
    up to 256 MiB and of 4096 evenly spaced rows beyond (``SiteArrays.digest`` says what that guarantees).

    Args:
        array: ``[n, d]`` (leading dimensions are flattened), or ``{site: [n, d]}``.
        batch_size: rows in a batch; what fills no batch at the end of an epoch is dropped.
        targets: what a transcoder writes: an array beside an array, ``{site: array}`` beside ``{site: array}``.
        d_in: for transcoders, how many leading columns of one array are the input; the rest is the target.
        seed: decides the order.
        epochs: how often the rows may be read.
        validation_fraction: share of rows set aside, drawn by the seed.
        outlier_norm_multiple: a row whose norm at a site exceeds so many times the median there is left out, and an
            ordinary row of its batch is served in its place; the median is of the first 4,096 rows in the first epoch's
            order. None leaves no row out. ``outliers`` has the rule and counts the rows left out; ``validation`` has
            all rows.

    Raises:
        ConfigError: options that are out of range or contradict each other, or a name that cannot be a site's.
        DataError: arrays of unlike numbers of rows, or of something else than floating-point rows; too few rows for a
            batch; values that are not finite (raised when they are read).
        FileError: a ``.npy`` file that cannot be read.
    """

    seekable = True

    def __init__(
        self,
        array: Any,
        batch_size: int = 2048,
        *,
        targets: Any = None,
        d_in: int | None = None,
        seed: int = 0,
        epochs: int = 1,
        validation_fraction: float = 0.0,
        outlier_norm_multiple: float | None = DEFAULT_MULTIPLE,
    ):
        _check_counts(batch_size, epochs)
        self._arrays = SiteArrays(array, targets, d_in)
        n, _ = self._arrays.shape
        if not 0 <= validation_fraction < 1:
            raise ConfigError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
        self.layout = self._arrays.layout
        self.outliers = OutlierFilter(outlier_norm_multiple, self.layout)
        self.batch_size, self.seed, self.epochs = batch_size, seed, epochs
        shuffled = torch.randperm(n, generator=random_stream(seed, "validation")).numpy()
        n_validation = round(validation_fraction * n)
        self._train_rows = np.sort(shuffled[n_validation:])
        self._validation_rows = np.sort(shuffled[:n_validation])
        if len(self._train_rows) < batch_size:
            raise DataError(f"{counted(len(self._train_rows), 'training row')}, one batch needs {batch_size}")
        self._epoch = self._batch = 0
        self._order: np.ndarray | None = None

    @property
    def d_in(self) -> int:
        return self.layout.d_in

    @property
    def d_out(self) -> int:
        return self.layout.d_out

    def _facts(self) -> Facts:
        n_aside = f", {self.n_validation:,} of them set aside" if self.n_validation else ""
        return Facts(
            f"ArrayRows: {counted(self._arrays.shape[0], 'row')}{n_aside}",
            {**self.layout.facts, "batch size": f"{self.batch_size:,}", "epochs": self.epochs, "seed": self.seed},
        )

    @property
    def n_validation(self) -> int:
        """How many rows are set aside."""
        return len(self._validation_rows)

    @property
    def validation(self) -> Tensor:
        """The rows set aside ``[n_validation, d]``."""
        return self._arrays.take(self._validation_rows)

    def plan(self, n_rows: int) -> None:
        """Refuse a run the array cannot serve."""
        available = len(self._train_rows) // self.batch_size * self.batch_size * self.epochs
        if n_rows > available:
            raise DataError(
                f"the run wants {counted(n_rows, 'row')}, the array gives {available:,} in "
                f"{counted(self.epochs, 'epoch')}; "
                "set epochs= higher or lower tokens"
            )

    def preview(self, n_rows: int) -> Tensor:
        self.norm_rule()
        return self.outliers.served(self._arrays.take(self._epoch_order()[:n_rows]), self._first_rows, counts=False)

    def norm_rule(self) -> NormRule | None:
        """Which rows are left out; the first rows are read where that is not known yet. None where none are."""
        if self.outliers.needs_rows:
            self.outliers.estimate([self._first_rows()])
        return self.outliers.rule

    def record(self) -> dict[str, Any]:
        """What a dictionary trained on these rows records about them, JSON-able; sites where they have names."""
        return {
            "array_shape": list(self._arrays.shape),
            "array_digest": self._arrays.digest,
            **(self.layout.record() if self.layout.has_names else {}),
            **outlier_record(self.outliers.rule),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "epochs": self.epochs,
        }

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if (self._batch + 1) * self.batch_size > len(self._train_rows):
            self._epoch, self._batch, self._order = self._epoch + 1, 0, None
        if self._epoch >= self.epochs:
            raise StopIteration
        self.norm_rule()
        start = self._batch * self.batch_size
        rows = self._arrays.take(self._epoch_order()[start : start + self.batch_size])
        self._batch += 1
        return self.outliers.served(rows, self._first_rows)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "outliers": self.outliers.state_dict(),
            "identity": self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; ``DataError`` where the rows or the options are others."""
        different = differences(state["identity"], self._identity())
        if different:
            raise DataError("the saved state belongs to other rows; they differ in " + "; ".join(different))
        self._epoch, self._batch, self._order = int(state["epoch"]), int(state["batch"]), None
        self.outliers.load_state_dict(state.get("outliers", {}))

    def _identity(self) -> dict[str, Any]:
        return {
            "shape": list(self._arrays.shape),
            "sites": list(self.layout.hook_names),
            "digest": self._arrays.digest,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "n_train": len(self._train_rows),
            **({} if self.outliers.multiple is None else {"outlier_norm_multiple": self.outliers.multiple}),
        }

    def _epoch_order(self) -> np.ndarray:
        if self._order is None:
            self._order = self._order_of(self._epoch)
        return self._order

    def _order_of(self, epoch: int) -> np.ndarray:
        generator = random_stream(self.seed, "epoch", epoch)
        return self._train_rows[torch.randperm(len(self._train_rows), generator=generator).numpy()]

    def _first_rows(self) -> Tensor:
        return self._arrays.take(self._order_of(0)[:MEDIAN_ROWS])


@shown_as_facts
class IterableRows:
    """Rows from a DataLoader or any iterable of ``[n, d]`` tensors, re-cut to ``batch_size``, in the order they come.

    Such a source cannot seek: a resumed run reads it from the start again and says so. An iterable that can be iterated
    again (a DataLoader, a list) may be read for several ``epochs``. ``outlier_norm_multiple`` as of ``ArrayRows``; the
    median is of the first 4,096 rows that come, which are read before the first is served.
    """

    seekable = False

    def __init__(
        self,
        source: Iterable[Any],
        batch_size: int = 2048,
        *,
        d_in: int | None = None,
        epochs: int = 1,
        outlier_norm_multiple: float | None = DEFAULT_MULTIPLE,
    ):
        _check_counts(batch_size, epochs)
        self._source, self.batch_size, self.epochs = source, batch_size, epochs
        if epochs > 1 and iter(source) is source:
            raise ConfigError(
                "an iterator can be read once only; pass something that can be iterated again, or epochs=1"
            )
        self._pending: list[Tensor] = []
        self._iterator = self._parts()
        first = next(self._iterator, None)
        if first is None:
            raise DataError("the source gives no rows")
        self._pending.append(first)
        self.layout = layout_of(first.shape[1], d_in)
        self.outliers = OutlierFilter(outlier_norm_multiple, self.layout)
        self._first: Tensor | None = None
        self._width = first.shape[1]

    @property
    def d_in(self) -> int:
        return self.layout.d_in

    @property
    def d_out(self) -> int:
        return self.layout.d_out

    def _facts(self) -> Facts:
        return Facts(
            f"IterableRows: of a {type(self._source).__name__}",
            {**self.layout.facts, "batch size": f"{self.batch_size:,}", "epochs": self.epochs},
        )

    def plan(self, n_rows: int) -> None:
        """Nothing is known about the length beforehand; a source that ends early ends the run."""

    def preview(self, n_rows: int) -> Tensor:
        self.norm_rule()
        if not self._fill(n_rows):
            self._require_width()
        return self.outliers.served(torch.cat(self._pending)[:n_rows], self._first_rows, counts=False)

    def norm_rule(self) -> NormRule | None:
        """Which rows are left out; the first rows are read where that is not known yet. None where none are."""
        if self.outliers.needs_rows:
            self.outliers.estimate([self._first_rows()])
        return self.outliers.rule

    def record(self) -> dict[str, Any]:
        return {
            "source": type(self._source).__name__,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            **outlier_record(self.outliers.rule),
        }

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        self.norm_rule()
        if not self._fill(self.batch_size):
            self._require_width()
            raise StopIteration
        rows = self._pending[0] if len(self._pending) == 1 else torch.cat(self._pending)
        self._pending = [rows[self.batch_size :]] if len(rows) > self.batch_size else []
        return self.outliers.served(rows[: self.batch_size], self._first_rows)

    def _first_rows(self) -> Tensor:
        """The first rows that came; kept, as they cannot be read again."""
        if self._first is None:
            self._fill(MEDIAN_ROWS)
            self._first = torch.cat(self._pending)[:MEDIAN_ROWS].clone()
        return self._first

    def _fill(self, n_rows: int) -> bool:
        """Read until ``n_rows`` wait, or to the end; a change of width ends it, and is raised once rows are missing."""
        have = sum(len(part) for part in self._pending)
        while have < n_rows and self._width == self.layout.width:
            part = next(self._iterator, None)
            if part is None:
                return False
            self._width = part.shape[1]
            if self._width == self.layout.width:
                self._pending.append(part)
                have += len(part)
        return have >= n_rows

    def _require_width(self) -> None:
        if self._width != self.layout.width:
            raise DataError(f"the source changed width from {self.layout.width} to {self._width}")

    def _parts(self) -> Iterator[Tensor]:
        for _ in range(self.epochs):
            for item in self._source:
                rows = item[0] if isinstance(item, (tuple, list)) else item
                rows = torch.as_tensor(rows)
                if rows.ndim == 1:
                    rows = rows.unsqueeze(0)
                if not all_finite(rows):
                    raise DataError("the source gave values that are not finite")
                yield rows.reshape(-1, rows.shape[-1])


def as_row_source(source: Any, **options: Any) -> ArrayRows | IterableRows:
    """The row source for a tensor, NumPy array, ``.npy`` path, mapping of those, DataLoader or iterable of rows."""
    if isinstance(source, (Tensor, np.ndarray, str, Path, Mapping)):
        return ArrayRows(source, **options)
    if isinstance(source, Iterable):
        if options.get("targets") is not None:
            raise ConfigError(
                f"targets= goes with arrays; of a {type(source).__name__}, give rows of input and target side by side, "
                "and d_in="
            )
        return IterableRows(source, **options)
    raise DataError(f"cannot read activations from a {type(source).__name__}")


def _check_counts(batch_size: int, epochs: int) -> None:
    if batch_size < 1 or epochs < 1:
        raise ConfigError(f"batch_size and epochs must be at least 1, got {batch_size} and {epochs}")
