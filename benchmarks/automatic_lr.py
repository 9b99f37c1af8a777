"""How close ``lr="auto"`` comes to the best learning rate, on the embedded model's activations.

    python benchmarks/automatic_lr.py

For each width and run length, a BatchTopK dictionary (k 32) is trained at several learning rates and at the automatic
one; printed is the fraction of variance explained on rows set aside.
"""

from __future__ import annotations

import argparse

import torch

import monosema as ms
from monosema.data import ArrayRows
from monosema.training.schedules import automatic_lr

SITE = "blocks.2.hook_resid_post"
BATCH_SIZE = 2048
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
RUNS = ((1024, 200_000), (4096, 400_000), (2048, 1_000_000))
"""(latents, tokens)"""


def harvest(n_rows: int) -> torch.Tensor:
    """Shuffled activations ``[n_rows, d]``."""
    model = ms.load_model("builtin")
    tokens = ms.load_tokens("stdlib", model.tokenizer, 256)
    stream = ms.ActivationStream(model, tokens, SITE, batch_size=BATCH_SIZE)
    return torch.cat([next(stream) for _ in range(-(-n_rows // BATCH_SIZE))])


def heldout_fve(rows: torch.Tensor, heldout: torch.Tensor, d_sae: int, n_tokens: int, lr: float) -> float:
    source = ArrayRows(rows[: n_tokens // BATCH_SIZE * BATCH_SIZE], BATCH_SIZE)
    coder = ms.SAE(rows.shape[1], d_sae, activation=ms.BatchTopK(k=32))
    config = ms.TrainingConfig(tokens=n_tokens // BATCH_SIZE * BATCH_SIZE, lr=lr)
    result = ms.train(coder, source, config, progress=False)
    return ms.evaluate(result.coder, activations=heldout, progress=False).fve


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    n_heldout = 50 * BATCH_SIZE
    rows = harvest(max(tokens for _, tokens in RUNS) + n_heldout)
    heldout, rows = rows[:n_heldout], rows[n_heldout:]
    print("| latents | tokens | " + " | ".join(f"{rate:g}" for rate in RATES) + " | auto |")
    print("|" + "---|" * (len(RATES) + 3))
    for d_sae, n_tokens in RUNS:
        auto = automatic_lr(d_sae, BATCH_SIZE, n_tokens // BATCH_SIZE)
        scores = [heldout_fve(rows, heldout, d_sae, n_tokens, rate) for rate in (*RATES, auto)]
        shown = " | ".join(f"{score:.4f}" for score in scores[:-1])
        print(f"| {d_sae} | {n_tokens:,} | {shown} | {scores[-1]:.4f} (at {auto:.2g}) |", flush=True)


if __name__ == "__main__":
    main()
