"""The children's end of the quality benchmarks: train whatever is asked on given rows, and hand back what came of it.

Runs in the peers' interpreters as well, so it imports torch and NumPy only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 8192
MATRYOSHKA = (1 / 16, 3 / 16, 3 / 4)
"""Shares of the latents in the groups of a Matryoshka dictionary."""
WARMUP, DECAY = 0.03, 0.3
"""Shares of a run in which the learning rate rises and falls, for every system."""
THRESHOLD_RATE = 0.05
"""Weight of the newest batch in the running mean of BatchTopK's threshold, for every system."""


@dataclass(frozen=True)
class Job:
    """One dictionary to train."""

    architecture: str
    rows: str
    """File (``.npy``, float32, ``[n, d]``) of training rows, in the order they are to be read."""
    heldout: str
    """File of rows to reconstruct."""
    out: str
    """Where to write decoder, reconstructions and firing rates (``.npz``)."""
    d_sae: int
    l0: float
    lr: float
    coefficient: float
    """Of the sparsity loss, for systems that cannot be told an L0."""
    batch_size: int
    n_steps: int
    seed: int

    def batches(self) -> list[Tensor]:
        """The run's batches."""
        rows = np.load(self.rows, mmap_mode="r")[: self.n_steps * self.batch_size]
        if len(rows) < self.n_steps * self.batch_size:
            raise ValueError(f"{self.rows} holds {len(rows)} rows, {self.n_steps * self.batch_size} are needed")
        return list(torch.from_numpy(np.array(rows)).split(self.batch_size))

    @property
    def n_warmup(self) -> int:
        return max(1, round(WARMUP * self.n_steps))

    @property
    def n_decay(self) -> int:
        return round(DECAY * self.n_steps)


@dataclass(frozen=True)
class Trained:
    """A dictionary as its system saves and runs it."""

    W_dec: Tensor
    """``[d_sae, d]``."""
    run: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Rows ``[n, d]`` to latents ``[n, d_sae]`` and reconstruction ``[n, d]``."""


def mean_norm_factor(x: Tensor) -> float:
    """What makes the mean norm of rows √d: SAELens' ``expected_average_only_in``."""
    return float(x.shape[1] ** 0.5 / x.norm(dim=1).mean())


def mean_square_factor(x: Tensor) -> float:
    """What makes the mean squared norm of rows 1: dictionary_learning's ``normalize_activations``."""
    return float(1 / x.square().sum(dim=1).mean().sqrt())


def serve(train: Callable[[Job, list[Tensor]], Trained]) -> None:
    """Answer each line of JSON, a ``Job``, with a line of JSON: L0 and FVE on the held-out rows, and seconds."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for line in sys.stdin:
        job = Job(**json.loads(line))
        started = time.perf_counter()
        trained = train(job, job.batches())
        seconds = time.perf_counter() - started
        answers.write(json.dumps({**_hand_back(job, trained), "seconds": seconds}) + "\n")


@torch.no_grad()
def _hand_back(job: Job, trained: Trained) -> dict[str, float]:
    heldout = torch.from_numpy(np.load(job.heldout))
    fired, n_active, parts = torch.zeros(job.d_sae, dtype=torch.int64), 0, []
    for x in heldout.split(CHUNK):
        latents, reconstruction = trained.run(x)
        active = latents != 0
        fired += active.sum(dim=0)
        n_active += int(active.sum())
        parts.append(reconstruction.float())
    reconstruction = torch.cat(parts)
    np.savez(
        job.out,
        W_dec=trained.W_dec.detach().float().numpy(),
        reconstruction=reconstruction.numpy(),
        fired=fired.numpy(),
    )
    residual = (heldout - reconstruction).double().square().sum()
    total = (heldout - heldout.mean(dim=0)).double().square().sum()
    return {"l0": n_active / len(heldout), "fve": float(1 - residual / total)}
