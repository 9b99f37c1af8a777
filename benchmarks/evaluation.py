"""Evaluating dictionaries: ours beside sae-lens' ``run_evals`` and SAEBench's core, and beside what must be computed.

    python tests/parity/environments.py --only saebench      # the peers' environment, once
    python benchmarks/evaluation.py [--contexts N] [--rounds N] [--write-docs]

All read the same tokens through a model of GPT-2-small's shape (random weights) at layer 6. ``evaluate`` gives its
whole report, two ablations and the figures of the weights included; the peers ablate by zero only. Whoever is not
running waits. The floor is timed in parts: one forward pass, a suffix for each ablation and each dictionary, the
dictionaries' encoding and decoding. They take turns, what is short before and after what is long, and figures are
means: the fastest of a few would compare seconds that met nothing else with minutes that cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import ROOT, command, machine, markdown_table, n_processors, refresh_block
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

import monosema as ms
from monosema.coders import SAE, SparseCoder, TopK
from monosema.evaluation.runs import fitting_batch_size
from monosema.hub import save
from monosema.models.suffix import Suffix

HERE = Path(__file__).resolve().parent
PEER = ROOT / ".venv-saebench" / "bin" / "python"
SITE = "blocks.6.hook_resid_pre"
FLOOR = ("forward", "suffix", "encode")
PEERS = ("sae-lens", "SAEBench")


def dictionary(seed: int, d_sae: int, k: int) -> SparseCoder:
    torch.manual_seed(seed)
    coder = SAE(768, d_sae, activation=TopK(k=k, weight_by_decoder_norm=False))
    coder.fold_W_dec_norm()
    coder.bind(SITE, SITE, {})
    return coder


def timed(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--context-size", type=int, default=128)
    parser.add_argument("--latents", type=int, default=6144)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dictionaries", type=int, default=20)
    parser.add_argument("--peer-batch", type=int, default=8, help="contexts in a batch of the peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=n_processors())
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config()).eval()
    model = ms.load_model(hf)
    contexts = torch.randint(0, 50256, (options.contexts, options.context_size))
    contexts[:, 0] = 50256
    coders = {str(seed): dictionary(seed, options.latents, options.k) for seed in range(options.dictionaries)}
    one = coders["0"]
    parts = contexts.split(fitting_batch_size({"": model}, options.context_size))
    suffix = Suffix(model, [SITE])
    starts = [next(iter(model.capture(part, suffix.start).values())) for part in parts]

    def forward() -> None:
        for part in parts:
            model(part)

    def late() -> None:
        for part, start in zip(parts, starts, strict=True):
            with suffix.resumed(start):
                model(part)

    def encode() -> None:
        for start in starts:
            x = start[:, 1:].reshape(-1, 768)
            one.decode(one.encode_sparse(x), x)

    def evaluated(**more: Any) -> None:
        ms.evaluate(one, model, contexts, n_tokens=None, progress=False, **more)

    runs: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "suffix": late,
        "encode": encode,
        "one": evaluated,
        "one, zero ablation": lambda: evaluated(ablation="zero"),
        "many": lambda: ms.evaluate_many(coders, model, contexts, n_tokens=None, progress=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, *PEERS)}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        hf.save_pretrained(Path(folder) / "model")
        save(one, Path(folder) / "coder")
        save_file({"tokens": contexts}, Path(folder) / "tokens")
        case: dict[str, Any] = {name: str(Path(folder) / name) for name in ("model", "coder", "tokens")}
        child = subprocess.Popen(
            [
                PEER,
                HERE / "evaluation_peers.py",
                json.dumps({**case, "batch": options.peer_batch, "n_threads": options.threads}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)},
        )
        assert child.stdin is not None and child.stdout is not None
        versions = json.loads(child.stdout.readline())
        for name in FLOOR:
            runs[name]()  # the first touches the weights
        short = [*FLOOR, "one", "one, zero ablation"]
        for name in options.rounds * [*short, "many", *short, *PEERS]:
            if name in runs:
                seconds[name].append(timed(runs[name]))
            else:
                child.stdin.write(name + "\n")
                child.stdin.flush()
                seconds[name].append(json.loads(child.stdout.readline()))
            print(name, f"{seconds[name][-1]:.2f}", flush=True)
        child.stdin.close()
        child.wait()
    took = {name: statistics.mean(each) for name, each in seconds.items()}
    n = len(coders)
    floors = {
        "one": took["forward"] + 3 * took["suffix"] + took["encode"],
        "one, zero ablation": took["forward"] + 2 * took["suffix"] + took["encode"],
        "many": took["forward"] + (2 + n) * took["suffix"] + n * took["encode"],
    }

    def row(label: str, name: str, of: str | None = None) -> list[str]:
        of_floor = f"{took[name] / floors[of]:.2f}" if of else ""
        return [label, f"{took[name]:.1f}", of_floor, f"{took['sae-lens'] / took[name]:.2f}"]

    rows = [
        row("monosema, one dictionary", "one", "one"),
        row("monosema, one dictionary, zero ablation only", "one, zero ablation", "one, zero ablation"),
        [*row(f"monosema, {n} dictionaries", "many", "many")[:3], f"{n * took['sae-lens'] / took['many']:.2f}"],
        row(f"sae-lens {versions['sae_lens']}, one", "sae-lens"),
        row(f"SAEBench {versions['sae_bench']} core, one", "SAEBench"),
    ]
    longer, faster = took["many"] / took["one"], n * took["one"] / took["many"]
    text = "\n".join(
        [
            markdown_table(["evaluation", "seconds", "of the floor", "times sae-lens, each"], rows),
            "",
            f"{n} dictionaries take {longer:.1f} times as long as one ({faster:.2f} times faster than {n} runs). "
            f"Floor of one: forward {took['forward']:.2f} s + 3 suffixes of {took['suffix']:.2f} s + encoding "
            f"{took['encode']:.2f} s. {contexts.numel():,} tokens in contexts of {options.context_size}, GPT-2-small's "
            f"shape, {SITE}, {options.latents:,} latents, TopK {options.k}, float32; {machine(options.threads)}; "
            f"means of {options.rounds} rounds.",
            f"Printed by `{command()}`.",
        ]
    )
    print(text)
    if options.write_docs:
        refresh_block("evaluation", text)


if __name__ == "__main__":
    main()
