"""dictionary_learning's dictionaries for the quality benchmarks: its trainers' ``update``, and its own encoding."""

from __future__ import annotations

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from jobs import MATRYOSHKA, THRESHOLD_RATE, Job, Trained, mean_square_factor, serve
from torch import Tensor


def train(job: Job, batches: list[Tensor]) -> Trained:
    factor = mean_square_factor(torch.cat(batches[:8]))
    n_ramp = job.n_steps // 10
    common = {
        "steps": job.n_steps,
        "activation_dim": batches[0].shape[1],
        "dict_size": job.d_sae,
        "layer": 0,
        "lm_name": "none",
        "lr": job.lr,
        "warmup_steps": job.n_warmup,
        "decay_start": job.n_steps - job.n_decay,
        "seed": job.seed,
        "device": "cpu",
    }
    ramp = {"sparsity_warmup_steps": n_ramp}
    fixed = {
        "k": round(job.l0),
        "threshold_beta": 1 - THRESHOLD_RATE,
        "threshold_start_step": job.n_steps // 2,
    }
    groups = {"group_fractions": list(MATRYOSHKA)}
    torch.manual_seed(job.seed)
    makers = {
        "ReLU": lambda: StandardTrainerAprilUpdate(**common, **ramp, l1_penalty=job.coefficient),
        "ReLU, p-annealing": lambda: PAnnealTrainer(
            **common, **ramp, initial_sparsity_penalty=job.coefficient, anneal_start=n_ramp, p_end=0.2
        ),
        "Gated": lambda: GatedSAETrainer(**common, **ramp, l1_penalty=job.coefficient),
        "JumpReLU": lambda: JumpReluTrainer(**common, **ramp, target_l0=job.l0 / job.coefficient),
        "TopK": lambda: TopKTrainer(**common, **fixed),
        "BatchTopK": lambda: BatchTopKTrainer(**common, **fixed),
        "Matryoshka BatchTopK": lambda: MatryoshkaBatchTopKTrainer(**common, **fixed, **groups),
    }
    trainer = makers[job.architecture]()
    for step, batch in enumerate(batches):
        trainer.update(step, factor * batch)
    coder = trainer.ae
    coder.eval()
    decoder = coder.W_dec if hasattr(coder, "W_dec") else coder.decoder.weight.T

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = coder.encode(factor * x)
        return latents, coder.decode(latents) / factor

    return Trained(decoder, run)


if __name__ == "__main__":
    serve(train)
