"""sae-lens and SAEBench under ``evaluation.py``: the model and the dictionary are loaded once, then timed when asked.

Runs in the environment of SAEBench, which holds both; a line on standard input names one, its seconds are answered.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))

import torch
from datasets import Dataset
from peer_saebench import _adapted, _hooked, core  # type: ignore[import-not-found]
from sae_lens import ActivationsStore
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
case = json.loads(sys.argv[1])
torch.set_num_threads(case["n_threads"])
hooked, sae = _hooked(case["model"]), _adapted(case["coder"])
contexts = load_file(case["tokens"])["tokens"]
n_batches = len(contexts) // case["batch"]


def saelens() -> None:
    dataset = Dataset.from_dict({"tokens": contexts.tolist()})
    store = ActivationsStore.from_sae(
        hooked, sae, dataset, context_size=contexts.shape[1], streaming=False, total_tokens=1
    )
    run_evals(sae, store, hooked, ActivationScaler(), get_eval_everything_config(case["batch"], n_batches, n_batches))


def saebench() -> None:
    dataset = Dataset.from_dict({"tokens": contexts.tolist()}).to_iterable_dataset()

    def store(model: object, sae: object, **options: object) -> ActivationsStore:
        return ActivationsStore.from_sae(model, sae, **{**options, "dataset": dataset})

    core.HookedTransformer = SimpleNamespace(from_pretrained_no_processing=lambda *_, **__: hooked)
    core.ActivationsStore = SimpleNamespace(from_sae=store)
    with tempfile.TemporaryDirectory() as folder:
        core.multiple_evals(
            [("ours", sae)],
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
            eval_batch_size_prompts=case["batch"],
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            dataset="given",
            context_size=contexts.shape[1],
            output_folder=folder,
            device="cpu",
            force_rerun=True,
        )


def answer(value: object) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


answer({"sae-lens": version("sae-lens"), "SAEBench": version("sae-bench")})
for line in sys.stdin:
    run = {"sae-lens": saelens, "SAEBench": saebench}[line.strip()]
    begun = time.perf_counter()
    run()
    answer(time.perf_counter() - begun)
