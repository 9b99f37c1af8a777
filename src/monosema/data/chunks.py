"""One chunk of a stream: its contexts, the activations made of them, and the order in which these are served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.core.finite import all_finite, finite_sum
from monosema.core.logs import get_logger
from monosema.core.seeds import random_stream
from monosema.data.contexts import Contexts, RowRule
from monosema.data.harvest import Harvester
from monosema.data.outliers import instead_of
from monosema.data.sites import RowLayout
from monosema.data.streamed import Place

logger = get_logger("monosema.data.stream")

MAX_CHUNK_BYTES = 2**30
MIN_BATCHES_PER_CHUNK = 64
CHUNKS_PER_RUN = 8

_ROWS_LOOKED_AT = 4096
"""One by one where their sum is not finite; of a whole chunk at once, masks would be as large as it."""


def default_chunk_contexts(
    n_rows: int | None, batch_size: int, *, n_contexts: int | None, rows_per_context: float, row_bytes: int
) -> int:
    """Contexts in a chunk of a run of ``n_rows``: for at most 1 GiB and an eighth of it, but at least 64 batches.

    None stands for a number of rows, or of contexts there are, that is not known.
    """
    rows = MAX_CHUNK_BYTES // row_bytes
    if n_rows is not None:
        rows = min(rows, n_rows // CHUNKS_PER_RUN)
    rows = max(rows, MIN_BATCHES_PER_CHUNK * batch_size)
    contexts = max(1, round(rows / rows_per_context))
    contexts = contexts if n_contexts is None else min(contexts, n_contexts)
    rows_there = contexts * rows_per_context
    logger.info(
        "chunks of %d contexts, about %d rows and %.0f MiB", contexts, rows_there, rows_there * row_bytes / 2**20
    )
    return contexts


def chunk_bytes(n_rows: int, row_bytes: int) -> int:
    """Memory of a chunk: its rows and the order they are served in."""
    return n_rows * (row_bytes + torch.int64.itemsize)


def spread_order(counts: Tensor, generator: torch.Generator) -> Tensor:
    """A random permutation of rows that lie context by context, ``counts[c]`` of context ``c``, spread evenly.

    One row of a context, whichever, stands at a random place in each of its ``counts[c]`` equal parts of the whole: a
    stretch of rows draws on every context that has enough of them, where a plain permutation leaves out the unlucky.
    """
    n = int(counts.sum())
    context = torch.repeat_interleave(torch.arange(len(counts)), counts)
    rows = torch.randperm(n, generator=generator)
    rows = rows[context[rows].argsort(stable=True)]  # context by context, each in an order of its own
    part = torch.arange(n) - (counts.cumsum(0) - counts)[context]
    place = (part + torch.rand(n, dtype=torch.float64, generator=generator)) / counts[context]
    return rows[place.argsort(stable=True)]


@dataclass(frozen=True)
class ChunkContexts:
    """The contexts of a chunk, and where they stand in the stream."""

    number: int
    """How many chunks come before it, over all epochs."""
    end: Place
    """The place in the order of reading behind its last context."""
    text: Contexts
    """The contexts."""


@dataclass(frozen=True)
class Chunk:
    """A chunk that is ready to be served."""

    contexts: ChunkContexts
    """What it was made of."""
    rows: Tensor
    """Activations ``[n, d]`` at the positions that become rows, in the order of the contexts."""
    order: Tensor
    """A permutation ``[n]`` of the rows, see ``spread_order``; ordinary rows in the place of outliers."""
    outliers: Tensor | None = None
    """``[n]`` bool on the CPU: the places in ``order`` that were an outlier's; None where there is none."""

    def without(self, outlier: Tensor | None) -> Chunk:
        """The chunk that serves ordinary rows in the place of those that are an ``outlier [n]``."""
        if outlier is None:
            return self
        places = outlier.to(self.order.device)[self.order]
        order = self.order.clone()
        order[places] = instead_of(places, order[~places])
        return replace(self, order=order, outliers=places.cpu())

    def n_left_out(self, start: int, stop: int) -> int:
        """Outliers that would have been served from ``start`` to ``stop``."""
        return 0 if self.outliers is None else int(self.outliers[start:stop].sum())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.rows, self.order

    def served(self, start: int, stop: int) -> Tensor:
        """A copy of the rows ``start`` to ``stop`` in the order of serving."""
        return self.rows[self.order[start:stop]]


@dataclass(frozen=True, kw_only=True)
class ChunkMaker:
    """Runs the models on a chunk's contexts."""

    harvester: Harvester
    """Captures the sites."""
    layout: RowLayout
    """How they lie side by side in a row."""
    rule: RowRule
    """Which of their positions become rows."""
    seed: int
    """Decides, with the chunk's number, the order of its rows."""
    model_batch_size: int
    """Contexts in one forward pass."""
    dtype: torch.dtype
    """Type of the rows."""
    device: torch.device
    """Where they are kept."""

    def make(
        self,
        contexts: ChunkContexts,
        before_each: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda n_rows: None,
    ) -> Chunk:
        """The chunk of ``contexts``; ``before_each`` is called before every forward pass and may raise to end it all.

        ``progress`` is told after every forward pass how many rows it gave.

        Raises ``DataError`` where activations are not finite, or as ``Harvester.check``.
        """
        self.harvester.check(contexts.text)
        kept = self.rule.row_mask(contexts.text)
        n_kept = int(kept.sum())
        pinned = self.device.type == "cpu" and torch.cuda.is_available()  # for transfers to a coder on a GPU
        rows = torch.empty(n_kept, self.layout.width, dtype=self.dtype, device=self.device, pin_memory=pinned)
        total, filled = finite_sum(rows[:0]), 0
        for start in range(0, len(kept), self.model_batch_size):
            before_each()
            mask = kept[start : start + self.model_batch_size]
            part = contexts.text[start : start + self.model_batch_size]
            captured = self.harvester.capture(part.ids, part.documents)
            n = int(mask.sum())
            column = 0
            for name in self.layout.hook_names:
                values = captured[name]
                values = values[mask.to(values.device)]
                rows[filled : filled + n, column : column + values.shape[1]] = values
                column += values.shape[1]
            total += finite_sum(rows[filled : filled + n])
            filled += n
            progress(n)
        if not bool(torch.isfinite(total)) and not all(map(all_finite, rows.split(_ROWS_LOOKED_AT))):
            raise DataError(
                f"activations at {', '.join(self.layout.hook_names)} are not finite in chunk {contexts.number}; "
                "load the model in another dtype (float32 or bfloat16), or look for broken text"
            )
        order = spread_order(kept.sum(1), random_stream(self.seed, "rows", contexts.number))
        return Chunk(contexts, rows, order.to(self.device))
