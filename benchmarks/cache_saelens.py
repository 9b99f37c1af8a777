"""sae-lens' cache runner and reader, given rows instead of a model's: one JSON request a line in, seconds out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import sae_lens
import torch
from datasets import Array2D, Features, Sequence, Value, disable_progress_bars
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
from sae_lens.training.activations_store import ActivationsStore


def config(request: dict[str, Any]) -> CacheActivationsRunnerConfig:
    return CacheActivationsRunnerConfig(
        dataset_path="rows",
        model_name="rows",
        model_batch_size=32,
        hook_name="rows",
        d_in=request["d_in"],
        training_tokens=request["n_rows"],
        context_size=request["context_size"],
        new_cached_activations_path=request["folder"],
        shuffle=False,
        device="cpu",
        buffer_size_gb=request["buffer_gb"],
    )


def write(request: dict[str, Any]) -> float:
    """Its runner's own loop; what is left out is the model, whose batches are slices of given rows."""
    made = config(request)
    rows = torch.from_numpy(np.load(request["rows"]))
    batch, place = made.n_tokens_in_batch, 0

    def raw_batch() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal place
        place = (place + batch) % (len(rows) - batch)
        return rows[place : place + batch], torch.arange(batch)

    runner = CacheActivationsRunner.__new__(CacheActivationsRunner)
    runner.cfg, runner.context_size = made, made.context_size
    runner.activations_store = SimpleNamespace(get_raw_llm_batch=raw_batch)
    shape = (made.context_size, made.d_in)
    token_ids = Sequence(Value(dtype="int32"), length=made.context_size)
    runner.features = Features({made.hook_name: Array2D(shape=shape, dtype=made.dtype), "token_ids": token_ids})
    started = time.perf_counter()
    written = runner.run()
    seconds = time.perf_counter() - started
    return seconds * request["n_rows"] / (len(written) * made.context_size)  # it rounds up to whole buffers


def read(request: dict[str, Any]) -> float:
    """All rows once, in its batches of contexts; it serves them in the order of the folder."""
    store = ActivationsStore.from_cache_activations(None, config(request))
    started = time.perf_counter()
    n_rows = 0
    while n_rows < request["n_rows"]:
        n_rows += len(store.get_raw_llm_batch()[0])
    return (time.perf_counter() - started) * request["n_rows"] / n_rows


def main() -> None:
    disable_progress_bars()
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(sae_lens.__version__), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["n_threads"])
        seconds = {"write": write, "read": read}[request["action"]](request)
        n_bytes = sum(path.stat().st_size for path in Path(request["folder"]).rglob("*.arrow"))
        print(json.dumps({"seconds": seconds, "n_bytes": n_bytes}), file=answers, flush=True)


if __name__ == "__main__":
    main()
