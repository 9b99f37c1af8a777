"""SAELens' live path from text to contexts, under ``tokenising.py``: ``ActivationsStore.iterable_sequences``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings

import datasets
import numpy as np
import sae_lens
import torch
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer


def main() -> None:
    given = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    shape = {"n_layers": 1, "d_model": 8, "d_head": 8, "n_heads": 1, "d_mlp": 8, "act_fn": "relu"}
    size = given["context_size"]
    config = HookedTransformerConfig(**shape, n_ctx=size, d_vocab=len(tokenizer))
    model = HookedTransformer(config, tokenizer=tokenizer)
    dataset = datasets.Dataset.from_parquet(given["texts"])
    answers.write(json.dumps({"version": sae_lens.__version__}) + "\n")
    for _ in sys.stdin:
        started = time.perf_counter()
        store = ActivationsStore.from_config_multi_hook(
            model,
            dataset=dataset,
            hook_names=["blocks.0.hook_resid_post"],
            hook_d_ins={"blocks.0.hook_resid_post": 8},
            streaming=False,
            context_size=size,
        )
        contexts = torch.stack(list(store.iterable_sequences))
        seconds = time.perf_counter() - started
        digest = hashlib.sha256(contexts.numpy().astype(np.int32).tobytes()).hexdigest()
        answers.write(json.dumps({"seconds": seconds, "contexts": len(contexts), "sha256": digest}) + "\n")


if __name__ == "__main__":
    main()
