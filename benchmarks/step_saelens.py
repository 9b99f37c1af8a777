"""SAELens' ``SAETrainer.step`` under ``step.py``, with what its ``fit`` does around it and logging off.

With ``SPARSE=1`` in the environment TopK uses its sparse activations, which are off by default; rescaling by decoder
norms is then off as well, because its backward pass cannot be run on sparse activations (6.54.12 with torch 2.13).
"""

from __future__ import annotations

import os

import sae_lens
import torch
from protocol import Prepared, Problem, serve, variance_explained
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor


def prepare(problem: Problem, first: Tensor) -> Prepared:
    torch.manual_seed(0)
    shape = {"d_in": problem.d_in, "d_sae": problem.d_sae, "k": problem.k}
    sae: TopKTrainingSAE
    if problem.activation == "topk":
        sparse = os.environ.get("SPARSE") == "1"
        sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(**shape, use_sparse_activations=sparse, rescale_acts_by_decoder_norm=not sparse)
        )
    else:
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape))
    config = SAETrainerConfig(
        total_training_samples=problem.n_steps * problem.batch_size,
        train_batch_size_samples=problem.batch_size,
        lr_end=3e-5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    newest: list[Tensor] = [first]

    def step(batch: Tensor) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(batch)
        trainer.n_training_steps += 1
        newest[0] = batch

    @torch.no_grad()
    def finish() -> float:
        return variance_explained(newest[0], sae(newest[0]))

    return Prepared({"sae-lens": sae_lens.__version__}, step, finish)


if __name__ == "__main__":
    serve(prepare)
