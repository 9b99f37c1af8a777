"""Text that is read as it is needed: a corpus of any length in flat memory, resumed where it stood.

Documents come one after the other, so their contexts pass through a pool of at least eight chunks, of which every chunk
is drawn at random. The pool's token ids and the place of the reader are all the state there is: what resumes tokenises
nothing a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.core.seeds import random_stream
from monosema.core.words import counted
from monosema.data.contexts import Contexts, RowRule, contexts_needed

Place = Mapping[str, Any]
"""Where reading goes on: plain values and tensors that a run's state keeps."""

POOL_CHUNKS = 8
"""Chunks of contexts that the next one is drawn from."""


@dataclass(frozen=True)
class Block:
    """Contexts of the documents read in one go."""

    contexts: Contexts
    """There may be none."""
    place: dict[str, Any]
    """JSON-able: where the reader goes on."""


ReadBlocks = Callable[[int, int, "dict[str, Any] | None"], Iterator[Block]]
"""Of (seed, epoch, place): the blocks of an epoch from ``place`` on, from its start for None."""


@dataclass(frozen=True)
class StreamedSplit:
    """The training side of text that is read as it is needed."""

    read: ReadBlocks
    """Opens the text."""
    context_size: int
    """Tokens in a context."""
    rule: RowRule
    """Which of their positions become rows."""
    name: str
    """``train``."""
    fingerprint: str
    """sha256 of what is known of the text beforehand: its source, options and first documents."""
    rows_per_context: float
    """Training rows of a context, on average over the first ones."""

    def __repr__(self) -> str:
        return f"StreamedSplit({self.name}, contexts of {counted(self.context_size, 'token')}, read as they are needed)"


@final
class StreamedOrder:
    """Contexts in the order that the text has them, through a pool: a ``ContextOrder``."""

    n_rows = None
    n_contexts = None

    def __init__(self, split: StreamedSplit, seed: int, epochs: int):
        self._split, self._seed, self._epochs = split, seed, epochs
        self._blocks: Iterator[Block] | None = None
        self._at: Place | None = None
        """The place that ``_blocks`` goes on from."""

    @property
    def start(self) -> Place:
        return self._place(0, 0, None, Contexts(torch.zeros(0, self._split.context_size, dtype=torch.int32)))

    @property
    def rows_per_context(self) -> float:
        return max(1.0, self._split.rows_per_context)

    def context_rows(self) -> Iterator[Tensor]:
        return iter(())

    def after(self, place: Place, n: int, n_rows: int | None = None) -> tuple[Contexts, Place] | None:
        epoch, position, reader = (place[key] for key in ("epoch", "position", "reader"))
        documents = place["pool_documents"]
        pool = Contexts(place["pool"], documents if documents.shape == place["pool"].shape else None)
        blocks = self._blocks if place is self._at and self._blocks is not None else None
        while epoch < self._epochs:
            if blocks is None:
                blocks = self._split.read(self._seed, epoch, reader)
            read = [pool]
            while sum(map(len, read)) < POOL_CHUNKS * n and (block := next(blocks, None)) is not None:
                read.append(block.contexts)
                reader = block.place
            pool = Contexts.joined([each for each in read if len(each)] or read[:1])
            if len(pool) > 0:
                drawn = torch.randperm(len(pool), generator=random_stream(self._seed, "pool", epoch, position))
                chosen = pool[drawn[:n]]
                if n_rows is not None:
                    chosen = chosen[: contexts_needed(self._split.rule.row_mask(chosen).sum(1), n_rows)]
                end = position + len(chosen)
                place = self._place(epoch, end, reader, pool[drawn[len(chosen) :].sort().values])
                self._blocks, self._at = blocks, place
                return chosen, place
            if position == 0:
                raise DataError("the text gives no training context; give more text or a smaller context_size")
            epoch, position, reader, blocks = epoch + 1, 0, None, None
        return None

    @staticmethod
    def _place(epoch: int, position: int, reader: Any, pool: Contexts) -> Place:
        documents = torch.zeros(0, dtype=torch.int16) if pool.documents is None else pool.documents
        return {"epoch": epoch, "position": position, "reader": reader, "pool": pool.ids, "pool_documents": documents}
