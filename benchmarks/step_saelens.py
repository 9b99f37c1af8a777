"""SAELens' ``SAETrainer.step`` under ``step.py``, with what its ``fit`` does around it and logging off.

With ``SPARSE=1`` in the environment TopK uses its sparse activations, which are off by default; rescaling by decoder
norms is then off as well, because its backward pass cannot be run on sparse activations (6.54.12 with torch 2.13).
"""

from __future__ import annotations

import os
from typing import Any

import sae_lens
import torch
from protocol import BANDWIDTH, LR, Prepared, Problem, Start, serve, variance_explained
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor


def prepare(problem: Problem, first: Tensor) -> Prepared:
    torch.manual_seed(0)
    shape = {"d_in": problem.d_in, "d_sae": problem.d_sae, "device": problem.device}
    k = {**shape, "k": problem.k}
    sparse = os.environ.get("SPARSE") == "1"
    jump = {} if problem.l0 is None else {"jumprelu_bandwidth": BANDWIDTH}
    makers: dict[str, Any] = {
        "ReLU": lambda: sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(**shape)),
        "Gated": lambda: sae_lens.GatedTrainingSAE(sae_lens.GatedTrainingSAEConfig(**shape)),
        "JumpReLU": lambda: sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(**shape, **jump)),
        "TopK": lambda: sae_lens.TopKTrainingSAE(
            sae_lens.TopKTrainingSAEConfig(**k, use_sparse_activations=sparse, rescale_acts_by_decoder_norm=not sparse)
        ),
        "BatchTopK": lambda: sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**k)),
        "Matryoshka BatchTopK": lambda: sae_lens.MatryoshkaBatchTopKTrainingSAE(
            sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**k, matryoshka_widths=problem.widths)
        ),
    }
    sae = makers[problem.architecture]()
    lr = {} if problem.l0 is None else {"lr": LR, "lr_end": LR / 10}
    config = SAETrainerConfig(
        total_training_samples=problem.n_steps * problem.batch_size,
        train_batch_size_samples=problem.batch_size,
        device=problem.device,
        autocast=problem.precision == "bfloat16",
        logger=LoggingConfig(log_to_wandb=False),
        **({"lr_end": 3e-5} | lr),
    )
    if problem.l0 is not None:
        start_(sae, problem.common_start(first))
    trainer = SAETrainer(config, sae, data_provider=iter(()))

    def step(batch: Tensor) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(batch)
        trainer.n_training_steps += 1

    @torch.no_grad()
    def finish(batch: Tensor) -> tuple[float, float]:
        latents = sae.encode(batch)
        l0 = float((latents.to_dense() if latents.is_sparse else latents).count_nonzero()) / len(batch)
        return variance_explained(batch, sae.decode(latents)), l0

    n_parameters = sum(parameter.numel() for parameter in sae.parameters())
    return Prepared({"sae-lens": sae_lens.__version__}, step, finish, n_parameters)


@torch.no_grad()
def start_(sae: Any, start: Start) -> None:
    """Give ``sae`` the common weights, in place."""
    sae.W_enc.copy_(start.directions.T)
    sae.W_dec.copy_(start.directions)
    sae.b_dec.zero_()
    if hasattr(sae, "threshold"):
        sae.threshold.fill_(start.threshold)
        sae.b_enc.zero_()
    elif hasattr(sae, "b_gate"):
        sae.b_gate.fill_(-start.threshold)
        sae.b_mag.zero_()
        sae.r_mag.zero_()
    else:
        sae.b_enc.fill_(-start.threshold)


if __name__ == "__main__":
    serve(prepare)
