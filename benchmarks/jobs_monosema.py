"""monosema's dictionaries for the quality benchmarks, with its defaults."""

from __future__ import annotations

from jobs import MATRYOSHKA, THRESHOLD_RATE, Job, Trained, serve
from torch import Tensor

import monosema as ms
from monosema.coders import SparseCoder
from monosema.data import IterableRows


def train(job: Job, batches: list[Tensor]) -> Trained:
    k = job.l0
    coders: dict[str, ms.ReLU | ms.TanhReLU | ms.Gated | ms.JumpReLU | ms.TopK | ms.AbsTopK | ms.BatchTopK] = {
        "ReLU": ms.ReLU(),
        "ReLU, p-annealing": ms.ReLU(),
        "Tanh-ReLU": ms.TanhReLU(),
        "Gated": ms.Gated(),
        "JumpReLU": ms.JumpReLU(),
        "TopK": ms.TopK(k=round(k)),
        "AbsTopK": ms.AbsTopK(k=round(k)),
        "Hierarchical TopK": ms.TopK(k=round(k)),
        "BatchTopK": ms.BatchTopK(k=k, threshold_rate=THRESHOLD_RATE),
        "Matryoshka BatchTopK": ms.BatchTopK(k=k, threshold_rate=THRESHOLD_RATE),
    }
    losses: dict[str, ms.L1 | ms.Lp | ms.L0] = {
        "ReLU": ms.L1(target_l0=k),
        "ReLU, p-annealing": ms.Lp(target_l0=k, p=1.0, p_end=0.2),
        "Tanh-ReLU": ms.L1(target_l0=k),
        "Gated": ms.L1(target_l0=k),
        "JumpReLU": ms.L0(target_l0=k),
    }
    levels: dict[str, ms.Matryoshka | ms.HierarchicalTopK] = {
        "Matryoshka BatchTopK": ms.Matryoshka(fractions=MATRYOSHKA),
        "Hierarchical TopK": ms.HierarchicalTopK(budgets=tuple(sorted({max(1, round(k) // 4), round(k)}))),
    }
    config = ms.TrainingConfig(
        tokens=job.n_steps * job.batch_size,
        lr=job.lr,
        seed=job.seed,
        sparsity=losses.get(job.architecture),
        levels=levels.get(job.architecture),
        calibrate_threshold=False,  # the peers keep their running thresholds
    )
    coder = ms.SAE(batches[0].shape[1], job.d_sae, activation=coders[job.architecture], seed=job.seed)
    result = ms.train(coder, IterableRows(batches, job.batch_size), config, progress=False)
    assert isinstance(result.coder, SparseCoder)
    trained = result.coder

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = trained.encode(x)
        return latents, trained.decode(latents)

    return Trained(trained.W_dec, run)


if __name__ == "__main__":
    serve(train)
