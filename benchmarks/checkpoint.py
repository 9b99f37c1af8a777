"""How long a step is held by a checkpoint, written beside the steps and by them; and how long restoring takes.

    python benchmarks/checkpoint.py [--d-in 512] [--d-sae 8192] [--batch-size 2048]

TopK from an array of random rows. Restoring is beside harvesting two chunks from the embedded model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import monosema as ms
from monosema.data import ArrayRows
from monosema.training import Callback, Trainer

N_STEPS, EVERY = 24, 8


class Clock(Callback):
    """Seconds from the end of a step to that of its checkpoint's writing, or of its copy."""

    def __init__(self) -> None:
        self.held: list[float] = []
        self._began = 0.0

    def on_step(self, trainer: Trainer) -> None:
        self._began = time.perf_counter()

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.held.append(time.perf_counter() - self._began)


def held(background: bool, batch_size: int, d_in: int, d_sae: int) -> Clock:
    """A short run with checkpoints."""
    rows = torch.randn(4 * batch_size, d_in, generator=torch.Generator().manual_seed(0))
    coder = ms.SAE(d_in, d_sae, activation=ms.TopK(k=32))
    config = ms.TrainingConfig(
        tokens=N_STEPS * batch_size, checkpoint_every=EVERY, log_every=10**6, background_checkpoints=background
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        source = ArrayRows(rows, batch_size, epochs=10)
        # the loop asks the folder's own callbacks first at every moment, so the clock's turn is after theirs
        ms.train(coder, source, config, out=Path(folder) / "run", callbacks=[clock], evaluation=False, progress=False)
    return clock


def restoring() -> tuple[float, float]:
    """Seconds to take up a run on the embedded model, up to its next batch; and to harvest two of its chunks."""
    model = ms.load_model("builtin")
    tokens = ms.load_tokens("stdlib", model.tokenizer, 256)

    def stream() -> ms.ActivationStream:
        return ms.ActivationStream(model, tokens, "blocks.2.hook_resid_post", batch_size=1024)

    first = stream()
    first.plan(400_000)
    next(first)
    state = first.state_dict()
    again = stream()
    start = time.perf_counter()
    again.load_state_dict(state)
    next(again)
    restored = time.perf_counter() - start
    chunk = first._next_contexts()
    assert chunk is not None
    start = time.perf_counter()
    for _ in range(2):
        first.make_chunk(chunk)
    return restored, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("--batch-size", 2048), ("--d-in", 512), ("--d-sae", 8192)):
        parser.add_argument(name, type=int, default=value)
    options = parser.parse_args()
    shape = (options.batch_size, options.d_in, options.d_sae)
    for background in (False, True):
        clock = held(background, *shape)
        shown = ", ".join(f"{1000 * seconds:.0f}" for seconds in clock.held)
        print(f"{shape}, {'background' if background else 'foreground'}: steps held for {shown} ms", end="; ")
        print(f"median {1000 * statistics.median(clock.held):.0f} ms", flush=True)
    restored, harvested = restoring()
    print(f"restoring {restored:.2f} s, harvesting two chunks {harvested:.2f} s")


if __name__ == "__main__":
    main()
