"""SAELens' training runner under ``end_to_end.py``, with the settings of its documented example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from run_protocol import RunProblem, serve
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoTokenizer, GPT2LMHeadModel


def hooked(problem: RunProblem) -> HookedTransformer:
    """The model as SAELens loads GPT-2: TransformerLens' implementation, weights not processed."""
    saved = GPT2LMHeadModel.from_pretrained(problem.model)
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
    model = HookedTransformer(config, tokenizer=AutoTokenizer.from_pretrained(problem.model))
    model.load_state_dict(convert_gpt2_weights(saved, config), strict=False)
    return model


def train(problem: RunProblem, note: Callable[[], None]) -> Mapping[str, str]:
    contexts = np.load(problem.contexts)
    step = SAETrainer._train_step

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = step(self, *args, **kwargs)
        note()
        return output

    SAETrainer._train_step = noted
    config = LanguageModelSAERunnerConfig(
        sae=BatchTopKTrainingSAEConfig(d_in=768, d_sae=problem.d_sae, k=problem.k),
        model_name="gpt2",
        hook_name=problem.site,
        dataset_path="in memory",
        streaming=False,
        context_size=contexts.shape[1],
        prepend_bos=False,
        training_tokens=problem.n_steps * problem.batch_size,
        train_batch_size_tokens=problem.batch_size,
        n_batches_in_buffer=64,
        store_batch_size_prompts=16,
        lr=5e-5,
        device="cpu",
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    dataset = Dataset.from_dict({"input_ids": contexts})
    LanguageModelSAETrainingRunner(config, override_dataset=dataset, override_model=hooked(problem)).run()
    return {"sae-lens": version("sae-lens"), "torch": torch.__version__}


if __name__ == "__main__":
    serve(train)
