"""Does speed cost quality? The fast path beside plain dense products, equal tokens, order and seeds.

    python benchmarks/equal_tokens.py [--write-docs]

The dense path multiplies whole ``[B, d_sae]`` matrices in float32 and selects with ``torch.topk`` over the whole batch,
as the published trainers do. Both train BatchTopK dictionaries on the same rows of the embedded model; loss and FVE are
those of the dictionary as saved, on rows set aside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from report import command, machine, markdown_table, refresh_block
from torch import Tensor

import monosema as ms
from monosema.coders.activations import batchtopk
from monosema.kernels import Latents, Scores, bags, latents_from_mask
from monosema.kernels.select import Parts
from monosema.metrics import fve

SITE = "blocks.2.hook_resid_post"
N_HELDOUT = 50_000


def dense_batch_top_k(
    parts: Parts,
    shape: tuple[int, int],
    n_entries: int,
    guess: float | None = None,
    weights_F: Tensor | None = None,
    *,
    signed: bool = False,
    may_fill: bool = False,
) -> tuple[Latents, Tensor]:
    """``select_batch_top_k_of_parts`` by ``torch.topk`` over the whole batch."""
    pre_BF = torch.cat([part.clone() for part in parts()])
    values, places = Scores(pre_BF, weights_F, signed).dense().flatten().topk(n_entries)
    chosen = torch.zeros_like(pre_BF, dtype=torch.bool).flatten().index_fill_(0, places, True).reshape(pre_BF.shape)
    return latents_from_mask(pre_BF, chosen & (pre_BF > 0)), values[-1].clamp(min=0)


@contextmanager
def dense_products() -> Iterator[None]:
    """Within it, nothing of a step is sparse."""
    limit, select = bags.DENSE_DENSITY, batchtopk.select_batch_top_k_of_parts
    bags.DENSE_DENSITY, batchtopk.select_batch_top_k_of_parts = -1.0, dense_batch_top_k
    try:
        yield
    finally:
        bags.DENSE_DENSITY, batchtopk.select_batch_top_k_of_parts = limit, select


def train(rows: Tensor, heldout: Tensor, seed: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """Held-out loss and FVE, and seconds."""
    coder = ms.SAE(rows.shape[1], options.latents, activation=ms.BatchTopK(k=options.k), seed=seed)
    config = ms.TrainingConfig(tokens=len(rows), seed=seed)
    started = time.perf_counter()
    result = ms.train(coder, rows, config, batch_size=options.batch_size, seed=seed, evaluation=False, progress=False)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        reconstruction = torch.cat([result.coder(part) for part in heldout.split(4096)])
    return float((heldout - reconstruction).square().sum(1).mean()), fve(heldout, reconstruction), seconds


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = ms.load_model("builtin")
    tokens = ms.load_tokens("stdlib", model.tokenizer, 256)
    stream = ms.ActivationStream(model, tokens.train, SITE, batch_size=options.batch_size, epochs=4)
    n_steps = options.tokens // options.batch_size
    rows = torch.cat([batch.float() for batch, _ in zip(stream, range(n_steps), strict=False)])
    aside = ms.ActivationStream(model, tokens.heldout, SITE, batch_size=N_HELDOUT // 10)
    heldout = torch.cat([batch.float() for batch, _ in zip(aside, range(10), strict=False)])
    results: dict[str, list[tuple[float, float, float]]] = {"fast": [], "dense": []}
    for seed in range(options.seeds):
        results["fast"].append(train(rows, heldout, seed, options))
        with dense_products():
            results["dense"].append(train(rows, heldout, seed, options))
        print(f"seed {seed}: {results['fast'][-1]} {results['dense'][-1]}", file=sys.stderr, flush=True)
    cells = [
        [
            path,
            *(spread([run[figure] for run in each]) for figure in (0, 1)),
            f"{statistics.median(seconds for *_, seconds in each):.0f}",
        ]
        for path, each in results.items()
    ]
    paired = [fast[1] - dense[1] for fast, dense in zip(results["fast"], results["dense"], strict=True)]
    text = (
        f"{markdown_table(['path', 'loss', 'FVE', 's a run'], cells)}\n\n"
        f"FVE of the fast path less the dense one's, seed by seed: {', '.join(f'{each:+.5f}' for each in paired)}. "
        f"BatchTopK, {options.latents:,} latents, k {options.k}, {len(rows):,} tokens in batches of "
        f"{options.batch_size:,}; {len(heldout):,} rows set aside; mean ± standard deviation over seeds; "
        f"{machine(options.threads)}, torch {torch.__version__}.\n"
        f"Printed by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("equal-tokens", text)


if __name__ == "__main__":
    main()
