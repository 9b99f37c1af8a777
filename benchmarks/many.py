"""Eight dictionaries on one pass of a model's activations, beside eight runs.

    python benchmarks/many.py [--write-docs]

For each shape: the time of eight ``ms.train`` calls of one dictionary each (eight times that of one); of one call with
all eight; and of its parts, harvest alone and steps alone. They take turns; figures are medians. One pass cannot
be faster than harvest and steps together.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from end_to_end import prepare
from report import command, machine, markdown_table, refresh_block

import monosema as ms
from monosema.coders import Dictionary
from monosema.data.order import indexed
from monosema.data.tokens import TokenSplit

N_CODERS = 8
CONTEXT_SIZE = 256


@dataclass(frozen=True)
class Shape:
    """A model, a site and dictionaries for it."""

    name: str
    model: str
    site: str
    d_sae: int
    k: int
    batch_size: int
    n_steps: int


SHAPES = (
    Shape("GPT-2 small, random weights", "", "blocks.6.hook_resid_pre", 6144, 32, 2048, 16),
    Shape("the embedded model", "builtin", "blocks.2.hook_resid_post", 4096, 32, 2048, 64),
    Shape("the embedded model, small", "builtin", "blocks.2.hook_resid_post", 1024, 16, 1024, 128),
)


@dataclass(frozen=True)
class Measured:
    """Seconds."""

    runs: float
    one_pass: float
    harvest: float
    steps: float


def measure(shape: Shape, model: ms.LanguageModel, split: TokenSplit, n_turns: int) -> Measured:
    def stream() -> ms.ActivationStream:
        n_contexts = -(-shape.n_steps * shape.batch_size // CONTEXT_SIZE) + 1
        return ms.ActivationStream(
            model, split, shape.site, batch_size=shape.batch_size, chunk_contexts=n_contexts, seed=0
        )

    def coder(seed: int) -> Dictionary:
        return ms.SAE(stream().d_in, shape.d_sae, activation=ms.BatchTopK(k=shape.k), seed=seed)

    config = ms.TrainingConfig(tokens=shape.n_steps * shape.batch_size, log_every=50)

    def train(which: Dictionary | dict[str, Dictionary]) -> None:
        ms.train(which, stream(), config, evaluation=False, progress=False)

    def steps() -> None:
        for trainer in trainers:
            for batch in batches:
                trainer.step(batch)

    train(coder(0))  # warm-up
    batches = list(itertools.islice(stream(), shape.n_steps))
    longer = replace(config, tokens=n_turns * config.tokens)  # the same trainers make the steps of every turn
    trainers = [ms.Trainer(coder(seed), longer, shape.batch_size) for seed in range(N_CODERS)]
    for trainer in trainers:
        trainer.initialise(batches[0])
    turns = []
    for turn in range(n_turns):
        turns.append(
            Measured(
                runs=N_CODERS * _seconds(lambda seed=turn: train(coder(seed))),  # type: ignore[misc]
                one_pass=_seconds(lambda: train({str(seed): coder(seed) for seed in range(N_CODERS)})),
                harvest=_seconds(lambda: list(itertools.islice(stream(), shape.n_steps))),
                steps=_seconds(steps),
            )
        )
    return Measured(*(statistics.median(getattr(turn, field.name) for turn in turns) for field in fields(Measured)))


def _seconds(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            if not shape.model:
                prepare(Path(folder), CONTEXT_SIZE, 1)
            model = ms.load_model(shape.model or Path(folder) / "model")
        split = indexed(ms.load_tokens("stdlib", model.tokenizer, CONTEXT_SIZE).train)
        got = measure(shape, model, split, options.turns)
        rows.append(
            [
                f"{shape.name}, `{shape.site}`, {shape.d_sae:,} latents",
                f"{shape.n_steps * shape.batch_size:,}",
                f"{got.runs:.1f}",
                f"{got.one_pass:.1f}",
                f"{got.runs / got.one_pass:.2f}",
                f"{got.harvest:.1f}",
                f"{got.steps:.1f}",
                f"{got.one_pass / (got.harvest + got.steps):.2f}",
            ]
        )
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ["shape", "tokens", f"{N_CODERS} runs, s", "one pass, s", "ratio", "harvest, s", "steps, s"]
    table = markdown_table([*header, "one pass / (harvest + steps)"], rows)
    text = (
        f"{table}\n\n"
        f"BatchTopK, batches of {' and '.join(sorted({f'{shape.batch_size:,}' for shape in SHAPES}))}, float32, "
        f"medians of {options.turns} turns, {machine(options.threads)}, torch {torch.__version__}.\n"
        f"Printed by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("many", text)


if __name__ == "__main__":
    main()
