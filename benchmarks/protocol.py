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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LR = 1e-6
"""Where all systems start with the same weights, small enough that the number of active latents stays."""
BANDWIDTH = 0.05
"""Of JumpReLU's straight-through estimate in that case."""
MATRYOSHKA = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
"""Shares of the latents in the five groups of a Matryoshka dictionary."""


@dataclass(frozen=True)
class Problem:
    """One training step to be timed, and what it is fed."""

    architecture: str
    """As the systems of ``contest.py`` name them."""
    batch_size: int
    d_in: int
    d_sae: int
    k: int
    n_threads: int
    n_steps: int
    """Length of the pretended run, for schedules."""
    rows: str
    """File (``.npy``, float32, ``[n, d_in]``) of activations."""
    l0: int | None = None
    """Mean number of active latents that all systems start with, from the same weights; None for their own start."""
    device: str = "cpu"
    precision: str = "float32"
    """Of products; weights and losses are float32."""

    def batches(self) -> list[Tensor]:
        """The rows of the file in whole batches, on the device."""
        rows = torch.from_numpy(np.load(self.rows)).to(self.device)
        return list(rows[: len(rows) // self.batch_size * self.batch_size].split(self.batch_size))

    def autocast(self) -> torch.autocast:
        """What a system without a setting of its own runs its steps under."""
        low = self.precision != "float32"
        return torch.autocast(self.device.partition(":")[0], dtype=getattr(torch, self.precision), enabled=low)

    @property
    def widths(self) -> list[int]:
        """Sizes of the prefixes of a Matryoshka dictionary."""
        return [round(share * self.d_sae) for share in np.cumsum(MATRYOSHKA)]

    def common_start(self, first: Tensor) -> Start:
        """Weights for every system at which ``l0`` latents of a token of ``first`` are active."""
        assert self.l0 is not None
        generator = torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(torch.randn(self.d_sae, self.d_in, generator=generator), dim=1)
        directions = directions.to(first.device)
        pre = (first @ directions.T).flatten()
        threshold = float(pre.kthvalue(pre.numel() - self.l0 * len(first)).values)
        return Start(directions, threshold)


@dataclass(frozen=True)
class Start:
    """Encoder and decoder of unit directions ``[d_sae, d_in]``, no bias, and what a pre-activation must exceed."""

    directions: Tensor
    threshold: float


@dataclass(frozen=True)
class Prepared:
    """A system under test, ready to train."""

    versions: Mapping[str, str]
    step: Callable[[Tensor], None]
    """One update, with all that the system's own loop does at every step."""
    finish: Callable[[Tensor], tuple[float, float]]
    """Share of variance explained on a batch, which shows that what was timed was training, and its mean L0."""
    n_parameters: int


def serve(prepare: Callable[[Problem, Tensor], Prepared]) -> None:
    """Answer each line with a line until the input ends.

    ``run N``: the seconds of N steps. ``peak N``: the memory, in bytes, that N steps need at their peak beyond the
    library and data, and beyond four numbers a parameter: the weight, its gradient and Adam's two moments. ``finish``:
    share of variance explained on the newest batch, and mean L0. ``prepare`` gets the problem and the first batch. What
    the system prints itself goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    problem = Problem(**json.loads(sys.argv[1]))
    torch.set_num_threads(problem.n_threads)
    batches = problem.batches()
    _wake_up(batches[0])
    on_gpu = problem.device != "cpu"
    before = torch.cuda.memory_allocated() if on_gpu else resident("VmRSS")
    prepared = prepare(problem, batches[0])
    state = 4 * 4 * prepared.n_parameters
    answers.write(
        json.dumps({"python": sys.version.split()[0], "torch": torch.__version__, **prepared.versions}) + "\n"
    )
    n_done = 0

    def run(n_steps: int) -> None:
        nonlocal n_done
        for _ in range(n_steps):
            prepared.step(batches[n_done % len(batches)])
            n_done += 1
        if on_gpu:
            torch.cuda.synchronize()

    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "run":
            started = time.perf_counter()
            run(int(arguments[0]))
            answers.write(f"{time.perf_counter() - started}\n")
        elif command == "peak":
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            run(int(arguments[0]))
            peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
            answers.write(f"{peak - before - state}\n")
        else:
            figures = prepared.finish(batches[max(0, n_done - 1) % len(batches)])
            answers.write(json.dumps(figures) + "\n")


def _wake_up(x: Tensor) -> None:
    """Load what torch loads at its first product and at its first optimiser: not the system's memory."""
    weight = torch.zeros(x.shape[1], 2, device=x.device, requires_grad=True)
    (x @ weight).sum().backward()
    torch.optim.Adam([weight]).step()


def variance_explained(x: Tensor, reconstruction: Tensor) -> float:
    """``1 - Σ‖x - x̂‖² / Σ‖x - x̄‖²``."""
    return 1 - float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())


def resident(name: str) -> int:
    """Bytes of this process: ``VmRSS`` now, or ``VmHWM`` at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit("memory can be measured on Linux only")
