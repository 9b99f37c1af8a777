"""SAELens' dictionaries for the quality benchmarks: its trainer, and the model as it saves it for inference."""

from __future__ import annotations

import tempfile
from itertools import accumulate

import sae_lens
import torch
from jobs import MATRYOSHKA, THRESHOLD_RATE, Job, Trained, mean_norm_factor, serve
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor


def train(job: Job, batches: list[Tensor]) -> Trained:
    torch.manual_seed(job.seed)
    factor = mean_norm_factor(torch.cat(batches[:8]))
    n_ramp = job.n_steps // 10
    shape = {"d_in": batches[0].shape[1], "d_sae": job.d_sae}
    l1 = {"l1_coefficient": job.coefficient, "l1_warm_up_steps": n_ramp}
    k = {"k": job.l0, "topk_threshold_lr": THRESHOLD_RATE}
    widths = [round(share * job.d_sae) for share in accumulate(MATRYOSHKA)]
    makers = {
        "ReLU": lambda: sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(**shape, **l1)),
        "Gated": lambda: sae_lens.GatedTrainingSAE(sae_lens.GatedTrainingSAEConfig(**shape, **l1)),
        "JumpReLU": lambda: sae_lens.JumpReLUTrainingSAE(
            sae_lens.JumpReLUTrainingSAEConfig(**shape, l0_coefficient=job.coefficient, l0_warm_up_steps=n_ramp)
        ),
        "TopK": lambda: sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**shape, k=round(job.l0))),
        "BatchTopK": lambda: sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**shape, **k)),
        "Matryoshka BatchTopK": lambda: sae_lens.MatryoshkaBatchTopKTrainingSAE(
            sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**shape, **k, matryoshka_widths=widths)
        ),
    }
    sae = makers[job.architecture]()
    with torch.no_grad():
        sae.b_dec.copy_(factor * torch.cat(batches[:8]).mean(dim=0))
    config = SAETrainerConfig(
        total_training_samples=job.n_steps * job.batch_size,
        train_batch_size_samples=job.batch_size,
        lr=job.lr,
        lr_end=job.lr / 10,
        lr_warm_up_steps=job.n_warmup,
        lr_decay_steps=job.n_decay,
        dead_feature_window=max(10, n_ramp),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, data_provider=iter(factor * batch for batch in batches))
    trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        saved = sae_lens.SAE.load_from_disk(folder)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = saved.encode(factor * x)
        return latents, saved.decode(latents) / factor

    return Trained(saved.W_dec, run)


if __name__ == "__main__":
    serve(train)
