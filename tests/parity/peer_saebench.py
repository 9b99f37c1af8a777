"""SAEBench 0.6.0 and sae-lens 6.54.12 evaluate our dictionaries, run by ``test_evaluation.py`` where both are.

Our own package is imported here, as a user's script would: the adapter is what is tested.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version as version_of
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
from datasets import Dataset
from peer_serve import serve
from pydantic import TypeAdapter
from sae_bench.evals.core import main as core
from sae_bench.evals.core.eval_output import CoreEvalOutput
from sae_lens import ActivationsStore
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

from monosema.compat import saebench
from monosema.hub import load


def version() -> Mapping[str, Any]:
    return {"sae_bench": version_of("sae-bench"), "sae_lens": version_of("sae-lens")}


def with_saelens(coder: str, model: str, tokens: str, batch: int, n_batches: int) -> Mapping[str, Any]:
    """``run_evals`` of sae-lens, so many batches for each of its two parts: its metrics and those by feature."""
    metrics, features = run_saelens(adapted(coder), hooked(model), load_file(tokens)["tokens"], batch, n_batches)
    return {"metrics": metrics, "features": features}


def with_saebench(
    coder: str, model: str, tokens: str, batch: int, n_batches: int, folder: str, restore_special: bool
) -> Mapping[str, Any]:
    """SAEBench's core on as many: the file it writes."""
    contexts = load_file(tokens)["tokens"]
    run_saebench(adapted(coder), hooked(model), contexts, batch, n_batches, folder, restore_special=restore_special)
    return json.loads((Path(folder) / "ours_custom_sae_eval_results.json").read_text())


def run_saelens(
    sae: saebench.SAEBenchAdapter, model: HookedTransformer, contexts: Tensor, batch: int, n_batches: int
) -> tuple[Any, Any]:
    """``run_evals`` with everything it measures."""
    given = Dataset.from_dict({"tokens": contexts.tolist()})
    store = ActivationsStore.from_sae(
        model, sae, given, context_size=contexts.shape[1], streaming=False, total_tokens=1
    )
    return run_evals(sae, store, model, ActivationScaler(), get_eval_everything_config(batch, n_batches, n_batches))


def run_saebench(
    sae: saebench.SAEBenchAdapter,
    model: HookedTransformer,
    contexts: Tensor,
    batch: int,
    n_batches: int,
    folder: str,
    *,
    restore_special: bool,
) -> None:
    """SAEBench's core into ``folder``. What it would download is handed to it."""
    given = Dataset.from_dict({"tokens": contexts.tolist()}).to_iterable_dataset()

    def store(model: Any, sae: Any, **options: Any) -> ActivationsStore:
        return ActivationsStore.from_sae(model, sae, **{**options, "dataset": given})

    downloads = core.HookedTransformer, core.ActivationsStore
    core.HookedTransformer = SimpleNamespace(from_pretrained_no_processing=lambda *_, **__: model)
    core.ActivationsStore = SimpleNamespace(from_sae=store)
    try:
        core.multiple_evals(
            [("ours", sae)],
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
            eval_batch_size_prompts=batch,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=restore_special,
            dataset="given",
            context_size=contexts.shape[1],
            output_folder=folder,
            device="cpu",
            force_rerun=True,
        )
    finally:
        core.HookedTransformer, core.ActivationsStore = downloads


def read_core(file: str) -> Mapping[str, Any]:
    """A result file read into SAEBench's own classes, which check it, and back."""
    return asdict(TypeAdapter(CoreEvalOutput).validate_json(Path(file).read_text()))


def adapted(folder: str) -> saebench.SAEBenchAdapter:
    """The saved dictionary as SAEBench and sae-lens take it."""
    return saebench.adapter(load(folder), model_name="tiny", prepend_bos=False)


def hooked(folder: str) -> HookedTransformer:
    """The saved GPT-2 as both load it: TransformerLens' implementation, weights not processed."""
    saved = GPT2LMHeadModel.from_pretrained(folder)
    shape = saved.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_ctx=shape.n_positions,
        d_head=shape.n_embd // shape.n_head,
        n_heads=shape.n_head,
        d_mlp=4 * shape.n_embd,
        d_vocab=shape.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(saved, config), strict=False)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), shape.bos_token_id)
    model.tokenizer = SimpleNamespace(padding_side="right", **special)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve({each.__name__: each for each in (version, with_saelens, with_saebench, read_core)})
