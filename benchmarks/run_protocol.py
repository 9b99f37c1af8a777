"""The children's end of ``end_to_end.py``: one whole run, with the time at which each step ended.

Runs in the peer's interpreter as well, so it imports torch and NumPy only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class RunProblem:
    """A run to be timed."""

    folder: str
    """Has ``model``, a GPT-2 with random weights as transformers saves it, and ``contexts.npy``, token ids [n, T]."""
    layer: int
    d_sae: int
    k: int
    batch_size: int
    n_steps: int
    n_threads: int

    @property
    def site(self) -> str:
        return f"blocks.{self.layer}.hook_resid_pre"

    @property
    def contexts(self) -> Path:
        return Path(self.folder) / "contexts.npy"

    @property
    def model(self) -> Path:
        return Path(self.folder) / "model"


def serve(train: Callable[[RunProblem, Callable[[], None]], Mapping[str, str]]) -> None:
    """Run ``train(problem, note)``, which calls ``note`` after each step and returns versions; print the times."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    problem = RunProblem(**json.loads(sys.argv[1]))
    torch.set_num_threads(problem.n_threads)
    times: list[float] = []
    versions = train(problem, lambda: times.append(time.perf_counter()))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.write(json.dumps({"times": times, "versions": dict(versions), "peak_bytes": peak}) + "\n")
    answers.flush()
