"""Tokens a second of whole runs, model included: ours beside SAELens' runner, on a GPT-2 small with random weights.

    python tests/parity/environments.py                    # SAELens' environment, once
    python benchmarks/end_to_end.py [--write-docs]

Both run the model up to the site, shuffle its activations and train a BatchTopK dictionary on them, float32, each in a
process of its own, one after the other and again. The figure is steady: the tokens of the steps after the first
``--warmup``, over the time they took with all harvesting in between.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from report import ROOT, command, machine, markdown_table, refresh_block
from run_protocol import RunProblem
from transformers import GPT2Config, GPT2LMHeadModel

import monosema as ms
from monosema.data.order import indexed

HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "monosema": (Path(sys.executable), "run_monosema.py"),
    "SAELens": (ROOT / ".venv-saelens/bin/python", "run_saelens.py"),
}


def prepare(folder: Path, context_size: int, n_contexts: int) -> None:
    """A GPT-2 small with random weights, and text as token ids."""
    tokenizer = ms.load_model("builtin").tokenizer
    assert tokenizer is not None
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    contexts = indexed(ms.load_tokens("stdlib", tokenizer, context_size).train).contexts[:]
    repeats = -(-n_contexts // len(contexts))
    np.save(folder / "contexts.npy", contexts.repeat(repeats, 1)[:n_contexts].numpy())


def run(system: str, problem: RunProblem) -> dict[str, Any]:
    python, script = SCRIPTS[system]
    threads = {name: str(problem.n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = {"PYTHONPATH": str(ROOT / "src")} if system == "monosema" else {}
    answer = subprocess.run(
        [python, HERE / script, json.dumps(asdict(problem))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**inherited, **threads, **path, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
    )
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def rate(result: dict[str, Any], problem: RunProblem, warmup: int) -> float:
    times = result["times"]
    return (len(times) - warmup) * problem.batch_size / (times[-1] - times[warmup - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=6)
    parser.add_argument("--latents", type=int, default=24576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--context-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=8, help="steps that are not timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {system: [] for system in SCRIPTS}
    peaks: dict[str, float] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        problem = RunProblem(
            folder,
            options.layer,
            options.latents,
            options.k,
            options.batch_size,
            options.steps,
            options.threads,
        )
        n_contexts = 3 * options.steps * options.batch_size // options.context_size
        prepare(Path(folder), options.context_size, n_contexts)
        for number in range(options.rounds):
            for system in SCRIPTS:
                result = run(system, problem)
                rates[system].append(rate(result, problem, options.warmup))
                peaks[system] = result["peak_bytes"]
                versions |= result["versions"]
                print(f"round {number + 1}: {system} {rates[system][-1]:.0f} tokens/s", file=sys.stderr, flush=True)
    medians = {system: statistics.median(each) for system, each in rates.items()}
    rows = [
        [
            system,
            f"{medians[system]:.0f}",
            ", ".join(f"{each:.0f}" for each in rates[system]),
            f"{peaks[system] / 2**30:.1f}",
            f"{medians['monosema'] / medians[system]:.2f}",
        ]
        for system in SCRIPTS
    ]
    table = markdown_table(["system", "tokens/s", "runs", "peak GiB", "ours / theirs"], rows)
    text = (
        f"{table}\n\n"
        f"GPT-2 small's architecture, random weights, `{problem.site}`, contexts of {options.context_size}; BatchTopK, "
        f"{options.latents:,} latents, k {options.k}, batches of {options.batch_size:,}; {options.steps} steps, "
        f"{options.warmup} not timed; {machine(options.threads)}; "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.\n"
        f"Printed by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("end-to-end", text)


if __name__ == "__main__":
    main()
