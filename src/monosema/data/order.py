"""The order in which a run reads contexts, and places in it that one can go on from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.core.seeds import random_stream
from monosema.data.contexts import Contexts, contexts_needed
from monosema.data.streamed import Place, StreamedSplit
from monosema.data.tokens import TokenSplit


@runtime_checkable
class ContextOrder(Protocol):
    """Contexts in the order of reading, as a function of a place: to look ahead changes nothing."""

    @property
    def start(self) -> Place:
        """Where a run begins."""
        ...

    @property
    def n_rows(self) -> int | None:
        """Training rows over all epochs; None where that is not known before they are read."""
        ...

    @property
    def n_contexts(self) -> int | None:
        """Contexts of an epoch, likewise."""
        ...

    @property
    def rows_per_context(self) -> float:
        """On average, at least 1."""
        ...

    def after(self, place: Place, n: int, n_rows: int | None = None) -> tuple[Contexts, Place] | None:
        """At most ``n`` contexts of one epoch from ``place`` on, and the place behind them; None at the end of the last
        epoch. With ``n_rows``, only as many of the first of them as give that many rows."""
        ...

    def context_rows(self) -> Iterator[Tensor]:
        """Rows in each context in the order of reading, one tensor for an epoch; nothing where that is not known."""
        ...


@final
class IndexedOrder:
    """Contexts that can be read in any order: a permutation of all of them for every epoch."""

    def __init__(self, split: TokenSplit, seed: int, epochs: int):
        self._split, self._seed, self._epochs = split, seed, epochs

    @functools.cached_property
    def _rows(self) -> Tensor:
        """Training rows of each context."""
        return self._split.rows_in_contexts()

    @functools.cached_property
    def _rows_in_epoch(self) -> int:
        return int(self._rows.sum())

    @property
    def start(self) -> Place:
        return {"epoch": 0, "position": 0}

    @property
    def n_rows(self) -> int:
        return self._rows_in_epoch * self._epochs

    @property
    def n_contexts(self) -> int:
        return self._split.n_contexts

    @property
    def rows_per_context(self) -> float:
        return max(1.0, self._rows_in_epoch / max(1, self._split.n_contexts))

    def of_epoch(self, epoch: int) -> Tensor:
        """The order in which the text's contexts are read in an epoch."""
        return torch.randperm(self._split.n_contexts, generator=random_stream(self._seed, "contexts", epoch))

    def after(self, place: Place, n: int, n_rows: int | None = None) -> tuple[Contexts, Place] | None:
        epoch, start = place["epoch"], place["position"]
        if start >= self._split.n_contexts:
            epoch, start = epoch + 1, 0
        if epoch >= self._epochs:
            return None
        chosen = self.of_epoch(epoch)[start : start + n]
        if n_rows is not None:
            chosen = chosen[: contexts_needed(self._rows[chosen], n_rows)]
        return self._split.part(chosen), {"epoch": epoch, "position": start + len(chosen)}

    def ends_at(self, place: Place, contexts: Contexts) -> bool:
        """Whether ``contexts`` are those before ``place``."""
        end = place["position"]
        before = self._split.part(self.of_epoch(place["epoch"])[max(0, end - len(contexts)) : end])
        return torch.equal(before.ids, contexts.ids)

    def context_rows(self) -> Iterator[Tensor]:
        return (self._rows[self.of_epoch(epoch)] for epoch in range(self._epochs))


def indexed(split: TokenSplit | StreamedSplit) -> TokenSplit:
    """``split``, where its contexts can be read in any order; ``DataError`` where it is read as it is needed."""
    if isinstance(split, StreamedSplit):
        raise DataError(
            "this text is read as it is needed, and its contexts have no numbers; tokenise it to disk first "
            "(monosema pretokenize), or load it without streaming"
        )
    return split
