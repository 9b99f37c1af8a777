"""The children's end of ``mixing.py``: serve batches whose rows say which context they come from, and count contexts.

Runs in the peers' interpreters as well, so it imports torch only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from protocol import resident
from torch import Tensor

PROMPTS = 16
"""Contexts in one forward pass, where a system does not say otherwise."""


@dataclass(frozen=True)
class Case:
    """A buffer to be filled and emptied many times."""

    settings: str
    """``held`` for ``pool_rows`` of them, or a name that the system knows."""
    pool_rows: int
    """Rows held to be mixed."""
    width: int
    """Numbers in a row; the first is the number of the context."""
    n_settling: float
    """As many buffers' rows are served before anything is counted: what is carried over has its share by then."""
    n_buffers: float
    """As many buffers' rows are looked at."""
    folder: str
    """For files, empty."""
    batch_size: int = 4096
    context_size: int = 256

    @property
    def pool_contexts(self) -> int:
        """As many contexts as the rows held fill."""
        return self.pool_rows // self.context_size

    def harvests(self) -> Iterator[Tensor]:
        """Activations ``[PROMPTS, context_size, width]`` of one forward pass after the other, without end."""
        number = 0
        while True:
            block = torch.zeros(PROMPTS, self.context_size, self.width)
            block[:, :, 0] = torch.arange(number, number + PROMPTS)[:, None]
            number += PROMPTS
            yield block


@dataclass(frozen=True)
class Source:
    """A system that is ready to serve."""

    versions: dict[str, str]
    held_rows: int
    """Rows it holds to mix."""
    batches: Iterator[Tensor]
    """Of ``[batch_size, width]``."""


def answer(prepare: Callable[[Case], Source]) -> None:
    """Print, as JSON, what the case given as the first argument shows.

    ``contexts``: how many contexts each batch draws on. ``pairs``: for each two successive batches the share of pairs
    of rows, one of each batch, that come from one context. ``peak_bytes``: memory beyond what was there before the
    first batch. ``refused``: instead of all this, the error that the settings end in.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case = Case(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    torch.randperm(case.pool_rows)  # what torch loads at its first use is not the system's memory
    try:
        source = prepare(case)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        contexts, pairs = count(source, case)
    except ValueError as error:
        answers.write(json.dumps({"refused": str(error)}))
        return
    answers.write(
        json.dumps(
            {
                "versions": source.versions,
                "held_rows": source.held_rows,
                "contexts": contexts,
                "pairs": pairs,
                "peak_bytes": resident("VmHWM") - before,
            }
        )
    )


def count(source: Source, case: Case) -> tuple[list[int], list[float]]:
    """Contexts of each batch, and the share of equal pairs of each two."""
    per_buffer = source.held_rows / case.batch_size
    n_before, n_counted = round(case.n_settling * per_buffer), max(1, round(case.n_buffers * per_buffer))
    contexts, pairs = [], []
    previous = torch.zeros(0, dtype=torch.int64)
    for number in range(n_before + n_counted):
        batch = next(source.batches)[:, 0].long()
        counts = torch.bincount(batch)
        if number >= n_before:
            common = min(len(counts), len(previous))
            contexts.append(int((counts > 0).sum()))
            pairs.append(float((counts[:common] * previous[:common]).sum()) / case.batch_size**2)
        previous = counts
    return contexts, pairs
