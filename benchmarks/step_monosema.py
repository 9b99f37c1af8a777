"""monosema's ``Trainer.step`` under ``step.py``: statistics, AuxK policy, optimiser, and the figures it logs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from protocol import BANDWIDTH, LR, MATRYOSHKA, Prepared, Problem, Start, serve
from torch import Tensor

import monosema as ms
from monosema.coders import SparseCoder


def prepare(problem: Problem, first: Tensor) -> Prepared:
    activations: dict[str, Any] = {
        "ReLU": ms.ReLU(),
        "Gated": ms.Gated(),
        "JumpReLU": ms.JumpReLU() if problem.l0 is None else ms.JumpReLU(bandwidth=BANDWIDTH),
        "TopK": ms.TopK(k=problem.k),
        "BatchTopK": ms.BatchTopK(k=problem.k),
        "Matryoshka BatchTopK": ms.BatchTopK(k=problem.k),
    }
    options: dict[str, Any] = {}
    if problem.architecture.startswith("Matryoshka"):
        options["levels"] = ms.Matryoshka(fractions=MATRYOSHKA)
    if problem.l0 is not None:
        options |= {"lr": LR, "input_scaling": "none", "decoder": "free"}
    if problem.precision != "float32":
        options["autocast"] = problem.precision
    coder = ms.SAE(problem.d_in, problem.d_sae, activation=activations[problem.architecture]).to(problem.device)
    config = ms.TrainingConfig(tokens=problem.n_steps * problem.batch_size, **options)
    trainer = ms.Trainer(coder, config, problem.batch_size)
    trainer.initialise(first)
    if problem.l0 is not None:
        start_(coder, problem.common_start(first))

    def step(batch: Tensor) -> None:
        trainer.step(batch)
        if trainer.step_number % config.log_every == 0:
            trainer.check_finite()
            trainer.metrics()

    def finish(_: Tensor) -> tuple[float, float]:
        figures = trainer.metrics()
        return figures["fve"], figures["l0"]

    n_parameters = sum(parameter.numel() for parameter in coder.parameters())
    return Prepared({"monosema": version("monosema")}, step, finish, n_parameters)


@torch.no_grad()
def start_(coder: SparseCoder, start: Start) -> None:
    """Give ``coder`` the common weights, in place."""
    coder.W_enc_rows.copy_(start.directions)
    coder.W_dec.copy_(start.directions)
    parameters = dict(coder.named_parameters())
    parameters["b_dec"].zero_()
    if "activation.threshold" in parameters:
        parameters["activation.threshold"].fill_(start.threshold)
        parameters["b_enc"].zero_()
    else:
        parameters["activation.b_gate" if "activation.b_gate" in parameters else "b_enc"].fill_(-start.threshold)


if __name__ == "__main__":
    serve(prepare)
