"""What reviving dead latents adds to a step.

    python benchmarks/revive.py [--write-docs]

Steps with each policy take turns; a tenth of the latents is dead where it says so, by a bias no token overcomes. The
pre-activation loss, JumpReLU's, is over all latents.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from report import command, machine, markdown_table, refresh_block
from rows import activations

import monosema as ms
from monosema.training.terms import Revive


@dataclass(frozen=True)
class Case:
    """A dictionary's activation and policy."""

    activation: ms.BatchTopK | ms.JumpReLU
    revive: Revive | None
    dead: float = 0.0
    """Share of the latents."""


def cases(options: argparse.Namespace) -> dict[str, Case]:
    """By name; the first of each activation is what the others are compared with."""
    fixed, wide = ms.BatchTopK(k=options.k), options.d_in // 2
    return {
        "BatchTopK": Case(fixed, None),
        "BatchTopK, AuxK, none dead": Case(fixed, ms.AuxK()),
        "BatchTopK, AuxK, 10 % dead": Case(fixed, ms.AuxK(), 0.1),
        f"BatchTopK, AuxK(k={wide}), 10 % dead": Case(fixed, ms.AuxK(k=wide), 0.1),
        "JumpReLU": Case(ms.JumpReLU(), None),
        "JumpReLU, pre-activation loss": Case(ms.JumpReLU(), ms.PreActivationLoss()),
    }


N_BATCHES = 4


def start(case: Case, rows: torch.Tensor, options: argparse.Namespace) -> ms.Trainer:
    coder = ms.SAE(options.d_in, options.d_sae, activation=case.activation)
    config = ms.TrainingConfig(tokens=10_000 * options.batch_size, lr=1e-6, revive=case.revive)
    trainer = ms.Trainer(coder, config, options.batch_size)
    trainer.initialise(rows[: options.batch_size])
    n_dead = round(case.dead * options.d_sae)
    with torch.no_grad():
        dict(coder.named_parameters())["b_enc"][:n_dead] = -1e4
    trainer.statistics.tokens_since_fired[:n_dead] = 10**12
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = activations(N_BATCHES * options.batch_size, options.d_in)
    batches = rows.split(options.batch_size)
    made = cases(options)
    trainers = {name: start(case, rows, options) for name, case in made.items()}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(1 + options.turns):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            for number in range(options.steps):
                trainer.step(batches[number % N_BATCHES])
            if turn > 0:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - started) / options.steps)
    cells, plain = [], 1.0
    for name, each in times.items():
        median = statistics.median(each)
        plain = median if made[name].revive is None else plain
        cells.append([name, f"{median:.1f}", f"{median / plain:.2f}"])
    text = (
        f"{markdown_table(['step', 'ms', 'times the plain step'], cells)}\n\n"
        f"B {options.batch_size}, d {options.d_in}, n {options.d_sae}, k {options.k}, float32, "
        f"{machine(options.threads)}, torch {torch.__version__}; medians of {options.turns} turns of {options.steps} "
        f"steps.\nPrinted by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("revive", text)


if __name__ == "__main__":
    main()
