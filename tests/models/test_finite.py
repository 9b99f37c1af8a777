"""Activations that are not finite are told as such, with the place and the fix."""

from __future__ import annotations

import pytest
import torch

from monosema.core.errors import UserError
from monosema.models import ARCHITECTURES, load_model


def overflowing(make_hf):
    """Block 1 goes beyond float16 and not beyond float32."""
    hf = make_hf("llama", torch.float32)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(2e4)
        hf.model.layers[1].mlp.up_proj.weight.mul_(50)
    return hf


@pytest.mark.parametrize("in_table", [True, False])
def test_overflow_names_the_block_and_the_dtypes(in_table, make_hf, monkeypatch):
    if not in_table:
        monkeypatch.delitem(ARCHITECTURES, "llama")
    load_model(overflowing(make_hf))
    with pytest.raises(UserError, match=r"not finite in float16 from block 1 on: .*dtype='bfloat16' or 'float32'"):
        load_model(overflowing(make_hf).half())


def test_weights_that_float16_cannot_hold_are_named(make_hf):
    hf = make_hf("llama", torch.float32)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"from block 0 on: 'model.layers.0.mlp.down_proj.weight' .*dtype='bfloat16'"):
        load_model(hf.half())


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.1.self_attn.q_proj.weight", "block 1"),
        ("model.norm.weight", "the final norm"),
        ("lm_head.weight", "the unembedding"),
    ],
)
def test_nan_weights_are_named(name, where, make_hf):
    hf = make_hf("llama", torch.float32)
    with torch.no_grad():
        hf.get_parameter(name).view(-1)[3] = float("nan")
    with pytest.raises(UserError, match=f"not finite in float32 from {where} on: '{name}' holds? NaN"):
        load_model(hf)


def test_float32_that_overflows_with_finite_weights(make_hf):
    hf = make_hf("llama", torch.float32)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(UserError, match=r"not finite in float32 from block 0 on, though its weights are"):
        load_model(hf)
