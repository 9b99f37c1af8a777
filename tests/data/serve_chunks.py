"""Serves ten chunks, of a stream or a cache, and prints the peak of memory after each, beyond what was there before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monosema.data import ActivationCache, ActivationStream, TokenSplit, write_cache
from monosema.models import load_model

N_CHUNKS, CHUNK_CONTEXTS, CONTEXT, WIDTH, BATCH = 10, 128, 256, 512, 1024
CHUNK_BYTES = CHUNK_CONTEXTS * CONTEXT * WIDTH * 4


def peak() -> int:
    """Bytes, since the start or since it was last set back."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main(kind: str, folder: str) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=8,
        max_position_embeddings=CONTEXT,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(64, (N_CHUNKS * CHUNK_CONTEXTS, CONTEXT), generator=generator, dtype=torch.int32)
    stream = ActivationStream(
        load_model(LlamaForCausalLM(config).eval()),
        TokenSplit(ids, frozenset(), "train"),
        "hook_embed",
        batch_size=BATCH,
        chunk_contexts=CHUNK_CONTEXTS,
        model_batch_size=8,
        prefetch=kind == "prefetch",
    )
    source: ActivationStream | ActivationCache = stream
    if kind in ("cache", "cache ahead"):
        write_cache(stream, folder, dtype="float32", shard_bytes=CHUNK_BYTES // 8)
        source = ActivationCache(folder, BATCH, mix_bytes=CHUNK_BYTES * 17 // 16, prefetch=kind == "cache ahead")
    Path("/proc/self/clear_refs").write_text("5")  # what loading and writing took is not asked
    before, peaks = peak(), []
    for number, _ in enumerate(source, start=1):
        if number % (CHUNK_CONTEXTS * CONTEXT // BATCH) == 0:
            peaks.append(peak() - before)
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(*sys.argv[1:])
