"""Captured values are those computed by hand from the weights, for every name of every family."""

from __future__ import annotations

import math

import pytest
import torch
from model_references import BLOCKS, layer_norm, plain_inputs, reported, rms_norm

from monosema.models.sitemap import fused_columns


@pytest.mark.parametrize("family", BLOCKS)
def test_block_sites_equal_hand_computed_values(family, model_of, tokens):
    model = model_of(family)
    states, patterns = reported(model.hf, tokens)
    for layer in range(model.n_layers):
        with torch.no_grad():
            expected = BLOCKS[family](model.hf, layer, states[layer], patterns[layer])
        captured = model.capture(tokens, expected)
        for name, value in expected.items():
            # RMSNorm modules compute in float32 even in a float64 model.
            torch.testing.assert_close(captured[name], value, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", BLOCKS)
def test_the_hand_computed_names_are_all_the_names_of_a_block(family, model_of, tokens):
    model = model_of(family)
    states, patterns = reported(model.hf, tokens)
    expected = set(BLOCKS[family](model.hf, 1, states[1], patterns[1])) | {"blocks.1.attn.hook_result"}
    assert {name for name in model.hook_names if name.startswith("blocks.1.")} == expected


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "neox_parallel"])
def test_result_is_each_heads_share_of_the_attention_output(family, model_of, tokens):
    model = model_of(family)
    values = model.capture(tokens, ["blocks.1.attn.hook_result", "blocks.1.hook_attn_out"])
    shape = model.site("blocks.1.attn.hook_result").shape
    assert shape == (4, 32)
    bias = {
        "llama": 0.0,
        "bert": lambda: model.hf.bert.encoder.layer[1].attention.output.dense.bias,
        "gpt2": lambda: model.hf.transformer.h[1].attn.c_proj.bias,
        "neox_parallel": lambda: model.hf.gpt_neox.layers[1].attention.dense.bias,
    }[family]
    total = values["blocks.1.attn.hook_result"].unflatten(-1, shape).sum(2)
    total = total + (bias().detach() if callable(bias) else bias)
    torch.testing.assert_close(total, values["blocks.1.hook_attn_out"])


def test_embed_carries_gemmas_scale_and_other_families_have_none(model_of, tokens):
    gemma, gpt2, bert = model_of("gemma2"), model_of("gpt2"), model_of("bert")
    embedded = gemma.capture(tokens, ["hook_embed", "blocks.0.hook_resid_pre"])
    expected = gemma.hf.model.embed_tokens.weight[tokens].detach() * math.sqrt(32)
    torch.testing.assert_close(embedded["hook_embed"], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(embedded["hook_embed"], embedded["blocks.0.hook_resid_pre"])
    granite = model_of("granite")
    scaled = granite.capture(tokens, ["hook_embed"])["hook_embed"]
    torch.testing.assert_close(scaled, 12.0 * granite.hf.model.embed_tokens.weight[tokens].detach())
    assert torch.equal(gpt2.capture(tokens, ["hook_embed"])["hook_embed"], gpt2.hf.transformer.wte.weight[tokens])
    word_embeddings = bert.hf.bert.embeddings.word_embeddings.weight
    assert torch.equal(bert.capture(tokens, ["hook_embed"])["hook_embed"], word_embeddings[tokens])


@pytest.mark.parametrize(("family", "path"), [("gpt2", "transformer.ln_f"), ("llama", "model.norm")])
def test_last_resid_post_is_before_the_final_norm(family, path, model_of, tokens):
    model = model_of(family)
    names = ["blocks.2.hook_resid_post", "ln_final.hook_scale", "ln_final.hook_normalized"]
    captured = model.capture(tokens, [*names, f"{path}:out"])
    norm = layer_norm if family == "gpt2" else rms_norm
    scale, normalized = norm(captured[names[0]], model.hf.get_submodule(path).eps if family == "gpt2" else 1e-6)
    torch.testing.assert_close(captured[names[1]], scale)
    torch.testing.assert_close(captured[names[2]], normalized)
    with torch.no_grad():
        last_state = model.hf(tokens, output_hidden_states=True).hidden_states[-1]
    # Two forward passes. Two orders of a float64 sum of n products a·b differ by 2 · n · 2^-53 · Σ|a·b| at most, and
    # n · Σ|a·b| adds up to less than 45,000 over all maps: 1e-11. Llama's norms round to float32: 2^-24 of values < 16.
    torch.testing.assert_close(captured[f"{path}:out"], last_state, rtol=0, atol=1e-11 if family == "gpt2" else 1e-6)
    assert not torch.allclose(captured[names[0]], last_state, atol=1e-2)


def test_grouped_query_shapes_are_not_expanded(model_of, tokens):
    model = model_of("qwen3")
    shapes = {part: model.site(f"blocks.0.attn.hook_{part}").shape for part in ("q", "k", "v", "z", "result")}
    assert shapes == {"q": (4, 12), "k": (2, 12), "v": (2, 12), "z": (4, 12), "result": (4, 32)}
    assert model.site("blocks.0.attn.hook_k").width == 24
    assert model.capture(tokens, ["blocks.0.attn.hook_k"])["blocks.0.attn.hook_k"].shape == (2, 9, 24)


def test_mamba_has_stream_and_mixer_sites_and_says_why_not_the_others(model_of, tokens):
    model = model_of("mamba")
    states = plain_inputs(model.hf, [*model.hf.backbone.layers, model.hf.backbone.norm_f], tokens)
    names = ["hook_embed", "hook_resid_pre", "hook_mixer_in", "hook_mixer_out", "hook_resid_post"]
    names = [names[0], *(f"blocks.1.{name}" for name in names[1:])]
    values = model.capture(tokens, [*names, "blocks.1.ln1.hook_normalized"])
    assert torch.equal(values["hook_embed"], states[0])
    assert torch.equal(values["blocks.1.hook_resid_pre"], states[1])
    assert torch.equal(values["blocks.1.hook_resid_post"], states[2])
    torch.testing.assert_close(values["blocks.1.hook_mixer_out"], states[2] - states[1])
    weight = model.hf.backbone.layers[1].norm.weight
    _, normalized = rms_norm(states[1], model.hf.config.layer_norm_epsilon)
    torch.testing.assert_close(values["blocks.1.ln1.hook_normalized"], normalized)
    torch.testing.assert_close(values["blocks.1.hook_mixer_in"], normalized * weight, rtol=1e-5, atol=1e-5)
    for name in ("blocks.1.attn.hook_q", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_mid", "blocks.1.mlp.hook_in"):
        with pytest.raises(ValueError, match=r"state-space block has neither attention nor MLP.*hook_mixer_out"):
            model.site(name)


@pytest.mark.parametrize("family", ["neox_parallel", "phi", "cohere"])
def test_parallel_blocks_refuse_resid_mid_and_say_why(family, model_of):
    assert not any(name.endswith("hook_resid_mid") for name in model_of(family).hook_names)
    with pytest.raises(ValueError, match=r"'blocks.0.hook_resid_mid'.*parallel block both read resid_pre"):
        model_of(family).site("blocks.0.hook_resid_mid")


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("gpt2", "blocks.0.ln1_post.hook_normalized", "no norm in the place of ln1_post"),
        ("olmo2", "blocks.0.ln1.hook_normalized", "no norm in the place of ln1"),
        ("gpt2", "blocks.0.mlp.hook_pre_linear", "no second linear map"),
        ("bert", "ln_final.hook_normalized", "no final norm"),
        ("llama", "blocks.0.hook_mixer_out", "attention and MLP, not a mixer"),
        ("llama", "blocks.0.hook_normalized_resid_post", "only post-norm models"),
    ],
)
def test_names_a_family_does_not_define_are_refused_with_the_reason(family, name, reason, model_of):
    with pytest.raises(ValueError, match=reason):
        model_of(family).site(name)


def test_fused_columns_by_hand():
    q, k, v = fused_columns("concatenated", n_heads=2, n_kv_heads=1, d_head=2)
    assert (q.tolist(), k.tolist(), v.tolist()) == ([0, 1, 2, 3], [4, 5], [6, 7])
    # Two key-value heads, each shared by two query heads: [q0 q1 k0 v0 | q2 q3 k1 v1] with d_head 1.
    q, k, v = fused_columns("grouped", n_heads=4, n_kv_heads=2, d_head=1)
    assert (q.tolist(), k.tolist(), v.tolist()) == ([0, 1, 4, 5], [2, 6], [3, 7])
