"""How one training step's time grows with the latents, the width, the active latents and the batch.

    python benchmarks/growth.py [--write-docs]

Each is doubled three times while the others stay. Beside each step stands the encoder's product alone, 2·B·d·n
operations, timed in turns with it; what a step takes beyond is selection, decode, gradients and the optimiser.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from protocol import Problem
from report import command, machine, markdown_table, refresh_block
from rows import activations
from step import OURS, PRETENDED_STEPS, PRODUCT, SYSTEMS, Timing, measure

BASE = Problem(
    architecture="TopK", batch_size=1024, d_in=256, d_sae=4096, k=16, n_threads=2, n_steps=PRETENDED_STEPS, rows=""
)
AXES = {"n": "d_sae", "d": "d_in", "k": "k", "B": "batch_size"}
DOUBLINGS = 3
N_BATCHES = 4


@dataclass(frozen=True)
class Point:
    """One problem and what it took."""

    problem: Problem
    ours: Timing
    product: Timing

    @property
    def operations(self) -> float:
        """Of the encoder's product."""
        return 2.0 * self.problem.batch_size * self.problem.d_in * self.problem.d_sae

    @property
    def traffic(self) -> float:
        """Bytes of decoder rows, encoder rows and tokens that the sparse part reads: four passes over the entries."""
        return 4.0 * self.problem.batch_size * self.problem.k * self.problem.d_in * 4

    @property
    def state(self) -> float:
        """Bytes that the optimiser reads and writes: weight, gradient and two moments, three of them written."""
        return 7.0 * 4 * 2 * self.problem.d_in * self.problem.d_sae

    @property
    def cells(self) -> list[str]:
        problem, ours, product = self.problem, self.ours.median_ms, self.product.median_ms
        return [
            *(f"{value:,}" for value in (problem.batch_size, problem.d_in, problem.d_sae, problem.k)),
            f"{ours:.1f}",
            f"{product:.1f}",
            f"{ours / product:.2f}",
            f"{self.operations / ours / 1e6:.0f}",
            f"{self.operations / product / 1e6:.0f}",
            f"{self.traffic / 2**20:.0f}",
            f"{self.state / 2**20:.0f}",
        ]


def problems(architecture: str, n_threads: int) -> list[Problem]:
    """The base, and each axis doubled from it."""
    base = replace(BASE, architecture=architecture, n_threads=n_threads)
    grown = [
        replace(base, **{name: getattr(base, name) * 2**times})
        for name in AXES.values()
        for times in range(1, DOUBLINGS + 1)
    ]
    return [base, *grown]


def time_one(problem: Problem, options: argparse.Namespace) -> Point:
    systems = [system for system in SYSTEMS if system.name in (OURS, PRODUCT)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        np.save(file, activations(N_BATCHES * problem.batch_size, problem.d_in).numpy())
        timings = measure(replace(problem, rows=str(file)), systems, options)
    return Point(problem, timings[OURS], timings[PRODUCT])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one step at many sizes.")
    parser.add_argument("--architecture", default="TopK")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peer-steps", type=int, default=10, help="products in a turn")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    points = [time_one(problem, options) for problem in problems(options.architecture, options.threads)]
    header = ["B", "d", "n", "k", "ms a step", "ms the product", "ratio", "GFLOP/s a step", "GFLOP/s the product"]
    header += ["MiB of entries' rows", "MiB of optimiser state"]
    text = (
        f"{markdown_table(header, [point.cells for point in points])}\n\n"
        f"{options.architecture}, float32, {machine(options.threads)}; "
        f"medians of {options.turns} turns of {options.steps} steps. GFLOP/s are those of the product, 2·B·d·n, in the "
        "time of either.\n"
        f"Printed by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("growth", text)


if __name__ == "__main__":
    main()
