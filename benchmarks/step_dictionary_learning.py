"""dictionary-learning's ``update`` under ``step.py``: what its ``trainSAE`` calls for every batch."""

from __future__ import annotations

from importlib.metadata import version

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from protocol import Prepared, Problem, serve, variance_explained
from torch import Tensor


def prepare(problem: Problem, first: Tensor) -> Prepared:
    trainer = (TopKTrainer if problem.activation == "topk" else BatchTopKTrainer)(
        steps=problem.n_steps,
        activation_dim=problem.d_in,
        dict_size=problem.d_sae,
        k=problem.k,
        layer=0,
        lm_name="none",
        device="cpu",
        seed=0,
    )
    n_done = 0
    newest: list[Tensor] = [first]

    def step(batch: Tensor) -> None:
        nonlocal n_done
        trainer.update(n_done, batch)
        n_done += 1
        newest[0] = batch

    @torch.no_grad()
    def finish() -> float:
        x = newest[0]
        return variance_explained(x, trainer.ae.decode(trainer.ae.encode(x, use_threshold=False)))

    return Prepared({"dictionary-learning": version("dictionary-learning")}, step, finish)


if __name__ == "__main__":
    serve(prepare)
