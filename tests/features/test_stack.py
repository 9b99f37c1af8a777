"""Features of a cross-layer transcoder: the layer and the logits of each latent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from features_tiny import READS, WIDTH, WRITES, Tied, stack_store, tiny_llama

from monosema.features import FeatureStore


@pytest.mark.parametrize("tied", ["none", "per_source", "per_target"])
def test_logits_are_those_of_all_that_a_latent_writes(tied: Tied):
    coder, store = stack_store(tied)
    hf = tiny_llama(50).hf
    with torch.no_grad():
        one = torch.eye(coder.d_sae, dtype=torch.float64)
        written = coder.decode(one) - coder.decode(torch.zeros_like(one))
        directions = written[:, :WIDTH] + written[:, WIDTH:]  # the residual stream adds up both layers
        logits = (directions * hf.model.norm.weight) @ hf.lm_head.weight.T
    for latent in range(coder.d_sae):
        top, bottom = store[latent].top_logits, store[latent].bottom_logits
        assert top is not None and bottom is not None
        assert [each.token_id for each in top] == logits[latent].topk(4).indices.tolist()
        assert [each.value for each in top] == pytest.approx(logits[latent].topk(4).values.tolist(), rel=1e-5)
        assert [each.token_id for each in bottom] == (-logits[latent]).topk(4).indices.tolist()


def test_each_latent_has_a_layer(tmp_path: Path):
    _, store = stack_store()
    store = FeatureStore.load(store.save(tmp_path / "features"))
    assert [store[latent].layer for latent in (0, 5, 6, 11)] == ["layer 0", "layer 0", "layer 1", "layer 1"]
    assert store[3].site == f"{READS[0]} → {'+'.join(WRITES)} (tiny-llama)"
    assert store[8].site == f"{READS[1]} → {WRITES[1]} (tiny-llama)"
    assert store.provenance.architecture == "ReLU cross-layer transcoder"


def test_what_does_not_add_up_in_the_stream_has_no_logits():
    _, store = stack_store(writes=("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"))
    assert store.logits is None
    assert "'blocks.0.hook_resid_post' is not added to the residual stream" in str(store.logits_note)
