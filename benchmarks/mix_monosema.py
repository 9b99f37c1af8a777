"""Our stream and our cache under ``mixing.py``: the real ones, on a model that embeds the number of each context."""

from __future__ import annotations

import math
from typing import Any

import torch
from mixing_protocol import PROMPTS, Case, Source, answer
from transformers import LlamaConfig, LlamaForCausalLM

import monosema as ms
from monosema.data import TokenSplit, write_cache
from monosema.data.cache.rows import MIX_BYTES
from monosema.data.cache.shards import ORIGIN
from monosema.data.cache.write import SHARD_BYTES
from monosema.data.chunks import CHUNKS_PER_RUN

REAL_WIDTH = 768
"""Of the rows that the defaults' bytes are counted in, whatever width the case has."""
SITE = "hook_embed"


def stream_of(case: Case, n_contexts: int, **options: Any) -> ms.ActivationStream:
    """Contexts that hold nothing but their own number."""
    config = LlamaConfig(
        vocab_size=n_contexts,
        hidden_size=case.width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=4,
        max_position_embeddings=case.context_size,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = ms.load_model(LlamaForCausalLM(config).eval())
    with torch.no_grad():  # after the check at load, which numbers so large would not pass
        model.hf.model.embed_tokens.weight[:, 0] = torch.arange(n_contexts)
    ids = torch.arange(n_contexts, dtype=torch.int32)[:, None].expand(-1, case.context_size).contiguous()
    split = TokenSplit(ids, frozenset(), "train")
    return ms.ActivationStream(model, split, SITE, batch_size=case.batch_size, **options)


def prepare(case: Case) -> Source:
    versions = {"monosema": str(ms.__version__)}
    n_contexts = math.ceil(case.n_settling + case.n_buffers + 2) * case.pool_contexts
    if case.settings in ("default", "shortest"):
        least = {"chunk_contexts": case.pool_contexts} if case.settings == "shortest" else {}
        stream = stream_of(case, max(n_contexts, CHUNKS_PER_RUN * case.pool_contexts), **least)
    else:
        stream = stream_of(case, n_contexts, chunk_contexts=case.pool_contexts, model_batch_size=PROMPTS)
    if case.settings != "cache":
        return Source(versions, stream.chunk_size * case.context_size, stream)
    # bytes of a narrow row stand for those of a real one, so that files and groups have as many rows
    narrow = (4 * case.width + 4 * len(ORIGIN)) / (4 * REAL_WIDTH + 4 * len(ORIGIN))
    share = case.pool_rows * 4 * REAL_WIDTH / MIX_BYTES
    write_cache(stream, case.folder, dtype="float32", shard_bytes=int(share * SHARD_BYTES * narrow))
    cache = ms.ActivationCache(case.folder, case.batch_size, mix_bytes=int(share * MIX_BYTES * narrow))
    return Source(versions, min(case.pool_rows, cache.n_rows), cache)


if __name__ == "__main__":
    answer(prepare)
