"""monosema's ``train`` under ``end_to_end.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version

import numpy as np
import torch
from run_protocol import RunProblem, serve

import monosema as ms
from monosema.data.tokens import TokenSplit

CHUNK_STEPS = 8


def train(problem: RunProblem, note: Callable[[], None]) -> Mapping[str, str]:
    model = ms.load_model(problem.model)
    contexts = torch.from_numpy(np.load(problem.contexts))
    split = TokenSplit(contexts, frozenset(), "train")
    stream = ms.ActivationStream(
        model,
        split,
        problem.site,
        batch_size=problem.batch_size,
        chunk_contexts=CHUNK_STEPS * problem.batch_size // contexts.shape[1],
        model_batch_size=16,
    )
    coder = ms.SAE(stream.d_in, problem.d_sae, activation=ms.BatchTopK(k=problem.k))
    config = ms.TrainingConfig(tokens=problem.n_steps * problem.batch_size)
    ms.train(coder, stream, config, evaluation=False, progress=False, on_step=lambda _: note())
    return {"monosema": version("monosema"), "torch": torch.__version__}


if __name__ == "__main__":
    serve(train)
