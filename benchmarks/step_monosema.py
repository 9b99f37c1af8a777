"""monosema's ``Trainer.step`` under ``step.py``: statistics, AuxK policy, optimiser, and the figures it logs."""

from __future__ import annotations

from importlib.metadata import version

from protocol import Prepared, Problem, serve
from torch import Tensor

import monosema as ms


def prepare(problem: Problem, first: Tensor) -> Prepared:
    activation = ms.TopK(k=problem.k) if problem.activation == "topk" else ms.BatchTopK(k=problem.k)
    coder = ms.SAE(problem.d_in, problem.d_sae, activation=activation)
    config = ms.TrainingConfig(tokens=problem.n_steps * problem.batch_size)
    trainer = ms.Trainer(coder, config, problem.batch_size)
    trainer.initialise(first)
    figures: dict[str, float] = {}

    def step(batch: Tensor) -> None:
        trainer.step(batch)
        if trainer.step_number % config.log_every == 0:
            trainer.check_finite()
            figures.update(trainer.metrics())

    return Prepared({"monosema": version("monosema")}, step, lambda: trainer.metrics()["fve"])


if __name__ == "__main__":
    serve(prepare)
