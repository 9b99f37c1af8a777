"""How many contexts a batch draws on, on a model that embeds the number of each context."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from monosema.core.seeds import random_stream
from monosema.data import ActivationCache, ActivationStream, TokenSplit, write_cache
from monosema.data.chunks import MIN_BATCHES_PER_CHUNK, spread_order
from monosema.models import load_model

BATCH, CONTEXT = 4096, 256
LEAST = MIN_BATCHES_PER_CHUNK * BATCH // CONTEXT
"""Contexts in the least chunk that is made by default."""


def numbered_stream(n_contexts: int, **options: int) -> ActivationStream:
    """Contexts of nothing but their own number, which is the first column of every row."""
    config = LlamaConfig(
        vocab_size=n_contexts,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=4,
        max_position_embeddings=CONTEXT,
        attn_implementation="eager",
    )
    model = load_model(LlamaForCausalLM(config).eval())
    with torch.no_grad():  # after the check at load, which numbers so large would not pass
        model.hf.model.embed_tokens.weight[:, 0] = torch.arange(n_contexts)
    ids = torch.arange(n_contexts, dtype=torch.int32)[:, None].expand(-1, CONTEXT).contiguous()
    split = TokenSplit(ids, frozenset(), "train")
    return ActivationStream(model, split, "hook_embed", batch_size=BATCH, model_batch_size=512, **options)


def n_contexts_of(batch: Tensor) -> int:
    return int(torch.bincount(batch[:, 0].long()).count_nonzero())


def expected_contexts(n_contexts: int) -> tuple[float, float]:
    """Mean and standard deviation of how many of ``n_contexts`` a batch hits that is drawn blindly from all rows."""
    n_rows = n_contexts * CONTEXT

    def missed(n: int) -> float:
        """The chance that ``n`` given contexts have no row in the batch: (rows - n T choose B) / (rows choose B)."""
        rest = n_rows - n * CONTEXT
        log = math.lgamma(rest + 1) - math.lgamma(rest - BATCH + 1)
        return math.exp(log - math.lgamma(n_rows + 1) + math.lgamma(n_rows - BATCH + 1))

    none = n_contexts * missed(1)
    variance = none + n_contexts * (n_contexts - 1) * missed(2) - none**2
    return n_contexts - none, math.sqrt(variance)


def test_every_batch_of_a_default_stream_draws_on_all_contexts_of_its_chunk():
    stream = numbered_stream(2 * LEAST)  # so short a run that its chunks are the least there are
    assert stream.chunk_size == LEAST >= 1000
    chunks = [[n_contexts_of(next(stream)) for _ in range(MIN_BATCHES_PER_CHUNK)] for _ in range(2)]
    assert chunks == [[LEAST] * MIN_BATCHES_PER_CHUNK] * 2
    blind, deviation = expected_contexts(LEAST)
    assert blind == pytest.approx(LEAST * (1 - (1 - 1 / 64) ** 256), abs=0.1), "what a plain permutation would give"
    assert deviation == pytest.approx(4, abs=0.1)


def test_every_batch_of_a_cache_draws_on_as_many_contexts_as_the_formula_says(tmp_path: Path):
    stream = numbered_stream(2 * LEAST, chunk_contexts=LEAST)
    write_cache(stream, tmp_path / "c", dtype="float32", shard_bytes=MIN_BATCHES_PER_CHUNK * BATCH * 28 // 8)
    cache = ActivationCache(tmp_path / "c", BATCH)
    assert len(cache.manifest.shards) == 16
    found = torch.tensor([n_contexts_of(batch) for batch in cache], dtype=torch.float64)
    mean, deviation = expected_contexts(2 * LEAST)
    assert len(found) == 2 * MIN_BATCHES_PER_CHUNK
    assert int(found.min()) >= 1000
    assert abs(float(found.mean()) - mean) < deviation
    assert float(found.std()) == pytest.approx(deviation, rel=0.4)


def test_a_spread_order_is_a_permutation_with_one_row_of_a_context_in_each_of_its_parts():
    counts = torch.tensor([7, 0, 3, 1, 5])
    orders = [spread_order(counts, random_stream(seed, "rows", 0)) for seed in range(200)]
    context = torch.repeat_interleave(torch.arange(5), counts)
    firsts = torch.zeros(int(counts.sum()))
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(16))
        for stop in range(1, 17):  # of a context's rows, a stretch from the start has its share, give or take one part
            share = torch.bincount(context[order[:stop]], minlength=5) - counts * stop / 16
            assert float(share.abs().max()) < 2
        firsts[order[0]] += 1
    assert torch.equal(orders[0], spread_order(counts, random_stream(0, "rows", 0)))
    assert len({tuple(order.tolist()) for order in orders}) == 200
    within = torch.stack([order[context[order] == 0] for order in orders]).double().mean(0)
    assert within == pytest.approx(torch.full((7,), 3.0, dtype=torch.float64), abs=0.6), "a context's rows in any order"
