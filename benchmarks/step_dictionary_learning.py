"""dictionary-learning's ``update`` under ``step.py``: what its ``trainSAE`` calls for every batch."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from protocol import LR, MATRYOSHKA, Prepared, Problem, Start, serve, variance_explained
from torch import Tensor


def prepare(problem: Problem, first: Tensor) -> Prepared:
    common = {
        "steps": problem.n_steps,
        "activation_dim": problem.d_in,
        "dict_size": problem.d_sae,
        "layer": 0,
        "lm_name": "none",
        "device": problem.device,
        "seed": 0,
        **({} if problem.l0 is None else {"lr": LR}),
    }
    makers: dict[str, Any] = {
        "ReLU": lambda: StandardTrainerAprilUpdate(**common),
        "Gated": lambda: GatedSAETrainer(**common),
        "JumpReLU": lambda: JumpReluTrainer(**common),
        "TopK": lambda: TopKTrainer(**common, k=problem.k),
        "BatchTopK": lambda: BatchTopKTrainer(**common, k=problem.k),
        "Matryoshka BatchTopK": lambda: MatryoshkaBatchTopKTrainer(
            **common, k=problem.k, group_fractions=list(MATRYOSHKA)
        ),
    }
    trainer = makers[problem.architecture]()
    coder = trainer.ae
    if problem.l0 is not None:
        start_(coder, problem.common_start(first))
    n_done = 0

    def step(batch: Tensor) -> None:
        nonlocal n_done
        with problem.autocast():
            trainer.update(n_done, batch)
        n_done += 1

    @torch.no_grad()
    def finish(batch: Tensor) -> tuple[float, float]:
        fixed = {"use_threshold": False} if "TopK" in problem.architecture else {}
        latents = coder.encode(batch, **fixed)
        return variance_explained(batch, coder.decode(latents)), float(latents.count_nonzero()) / len(batch)

    n_parameters = sum(parameter.numel() for parameter in coder.parameters())
    return Prepared({"dictionary-learning": version("dictionary-learning")}, step, finish, n_parameters)


@torch.no_grad()
def start_(coder: Any, start: Start) -> None:
    """Give ``coder`` the common weights, in place."""
    if hasattr(coder, "W_enc"):
        coder.W_enc.copy_(start.directions.T)
        coder.W_dec.copy_(start.directions)
        coder.b_enc.zero_()
        coder.b_dec.zero_()
        coder.threshold.fill_(start.threshold)
        return
    coder.encoder.weight.copy_(start.directions)
    coder.decoder.weight.copy_(start.directions.T)
    if hasattr(coder, "gate_bias"):
        coder.decoder_bias.zero_()
        coder.gate_bias.fill_(-start.threshold)
        coder.mag_bias.zero_()
        coder.r_mag.zero_()
    else:
        (coder.bias if coder.decoder.bias is None else coder.decoder.bias).zero_()
        coder.encoder.bias.fill_(-start.threshold)


if __name__ == "__main__":
    serve(prepare)
