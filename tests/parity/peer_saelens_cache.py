"""sae-lens' caches of activations, without a model: its store reads a folder, its runner writes given rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Array2D, Features, Sequence, Value
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file


def _config(folder: str, hook_name: str, d_in: int, context_size: int, batch: int, **other: Any) -> Any:
    return CacheActivationsRunnerConfig(
        dataset_path="rows",
        model_name="rows",
        model_batch_size=batch,
        hook_name=hook_name,
        d_in=d_in,
        context_size=context_size,
        new_cached_activations_path=folder,
        shuffle=False,
        device="cpu",
        **other,
    )


def read_cache(
    folder: str, out: str, hook_name: str, d_in: int, context_size: int, n_batches: int, batch: int
) -> Mapping[str, Any]:
    """What its store gives of ``folder``, ``batch`` contexts at a time."""
    config = _config(folder, hook_name, d_in, context_size, batch, training_tokens=n_batches * batch * context_size)
    store = ActivationsStore.from_cache_activations(None, config)  # type: ignore[arg-type]
    batches = [store.get_raw_llm_batch() for _ in range(n_batches)]
    token_ids = torch.cat([ids for _, ids in batches if ids is not None])
    save_file({"rows": torch.cat([rows for rows, _ in batches]), "token_ids": token_ids}, out)
    return {}


def write_cache(folder: str, rows: str, hook_name: str, context_size: int, batch: int, dtype: str) -> Mapping[str, Any]:
    """Its runner's loop, two batches a buffer; given rows stand for the model's, and their numbers for token ids."""
    given = load_file(rows)["rows"]
    size = batch * context_size
    buffer_gb = 2 * size * given.shape[1] * given.element_size() / 1e9
    other = {"training_tokens": len(given), "dtype": dtype, "buffer_size_gb": buffer_gb}
    config = _config(folder, hook_name, given.shape[1], context_size, batch, **other)
    places = iter(range(0, len(given), size))

    def raw_batch() -> tuple[torch.Tensor, torch.Tensor]:
        start = next(places)
        return given[start : start + size], torch.arange(start, start + size)

    runner = CacheActivationsRunner.__new__(CacheActivationsRunner)
    runner.cfg, runner.context_size = config, context_size
    runner.activations_store = SimpleNamespace(get_raw_llm_batch=raw_batch)  # type: ignore[assignment]
    token_ids = Sequence(Value(dtype="int32"), length=context_size)
    shape = (context_size, given.shape[1])
    runner.features = Features({hook_name: Array2D(shape=shape, dtype=dtype), "token_ids": token_ids})
    runner.run()
    return {}
