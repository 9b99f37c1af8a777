"""What a run says when memory runs out: what it holds, which options need less, and what is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from monosema.core.errors import OutOfMemoryError, first_line, is_out_of_memory
from monosema.core.memory import readable_bytes
from monosema.data import ActivationStream
from monosema.runs.heldout import RowSource
from monosema.training import Trainer


@contextlib.contextmanager
def memory_explained(trainers: Sequence[Trainer], rows: RowSource, kept: Sequence[str]) -> Iterator[None]:
    """Inside, running out of memory raises ``OutOfMemoryError`` with advice.

    ``kept`` has the run folders, in which the newest checkpoint stands.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(_advice(trainers, rows, kept, first_line(error))) from error


def _advice(trainers: Sequence[Trainer], rows: RowSource, kept: Sequence[str], reason: str) -> str:
    steps = [trainer.memory() for trainer in trainers]
    parts = {
        "weights and optimizer state (d_sae)": sum(step.weights + step.moments for step in steps),
        "a step's gradients, pre-activations and entries (batch_size, d_sae)": sum(s.pre_activations for s in steps)
        + max(step.passing for step in steps),
        "copies for checkpoints (background_checkpoints=False)": sum(step.snapshot for step in steps) if kept else 0,
    }
    if isinstance(rows, ActivationStream):
        parts["a chunk of activations (chunk_bytes, model_batch_size)"] = (
            rows.rows_in_chunk * rows.layout.width * rows.dtype.itemsize
        )
    largest = sorted(parts.items(), key=lambda part: -part[1])
    held = ", ".join(f"{what} {readable_bytes(n)}" for what, n in largest if n)
    step = max(trainer.step_number for trainer in trainers)
    text = (
        f"out of memory after step {step} ({reason:.200}). Beside the model, the run holds {held}; lower the options "
        "in brackets, the largest first, or free memory. `monosema plan` says what fits"
    )
    if kept and step:
        text += f". The newest checkpoint is kept in {', '.join(kept)}: with more memory the same call resumes from it"
    return text
