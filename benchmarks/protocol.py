"""The children's end of ``step.py``: prepare once, then run so many steps whenever asked.

Runs in the peers' interpreters as well, so it imports torch and NumPy only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """One training step to be timed, and what it is fed."""

    activation: str
    """``topk`` or ``batchtopk``."""
    batch_size: int
    d_in: int
    d_sae: int
    k: int
    n_threads: int
    n_steps: int
    """Length of the pretended run, for schedules."""
    rows: str
    """File (``.npy``, float32, ``[n, d_in]``) of activations."""

    def batches(self) -> list[Tensor]:
        """The rows of the file in whole batches."""
        rows = torch.from_numpy(np.load(self.rows))
        return list(rows[: len(rows) // self.batch_size * self.batch_size].split(self.batch_size))


@dataclass(frozen=True)
class Prepared:
    """A system under test, ready to train."""

    versions: Mapping[str, str]
    step: Callable[[Tensor], None]
    """One update, with all that the system's own loop does at every step."""
    finish: Callable[[], float]
    """Share of variance explained on the newest batch: shows that what was timed was training."""


def serve(prepare: Callable[[Problem, Tensor], Prepared]) -> None:
    """Answer ``run N`` with the seconds of N steps and ``finish`` with a figure, a line each, until the input ends.

    ``prepare`` gets the problem and the first batch. What the system prints itself goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    problem = Problem(**json.loads(sys.argv[1]))
    torch.set_num_threads(problem.n_threads)
    batches = problem.batches()
    prepared = prepare(problem, batches[0])
    answers.write(
        json.dumps({"python": sys.version.split()[0], "torch": torch.__version__, **prepared.versions}) + "\n"
    )
    n_done = 0
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "run":
            started = time.perf_counter()
            for _ in range(int(arguments[0])):
                prepared.step(batches[n_done % len(batches)])
                n_done += 1
            answers.write(f"{time.perf_counter() - started}\n")
        else:
            answers.write(f"{prepared.finish()}\n")


def variance_explained(x: Tensor, reconstruction: Tensor) -> float:
    """``1 - Σ‖x - x̂‖² / Σ‖x - x̄‖²``."""
    return 1 - float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())
