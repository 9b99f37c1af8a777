"""The structural search finds what the table says, and the parts of families that the table does not have."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from monosema.core.errors import UserError
from monosema.models import ARCHITECTURES, LanguageModel, load_model
from monosema.models.architectures import lookup
from monosema.models.structure import search_architectures
from monosema.models.verify import probe_tokens


def search(hf):
    tokens = probe_tokens(101, frozenset({0, 1, 2}), torch.device("cpu"), 16)
    return search_architectures(hf.eval(), lambda: hf(tokens), (3, 8), 32)


@pytest.mark.parametrize("family", ["gpt2", "neox_parallel", "neox_sequential", "llama", "qwen3", "gemma2"])
def test_the_search_finds_the_tables_entry_by_itself(family, make_hf):
    hf = make_hf(family)
    known = lookup(hf.config)
    candidates = search(hf)
    assert {(found.blocks, found.ln_final) for found in candidates} == {(known.blocks, known.ln_final)}
    expected = asdict(known.block) | {"parallel_if": None}
    assert expected in [asdict(found.block) for found in candidates]
    assert candidates[-1].block.kind == "opaque"


@pytest.mark.parametrize("family", ["gpt2", "neox_parallel", "gemma2"])
def test_fused_projections_are_read_in_the_layout_that_the_numbers_confirm(
    family, make_hf, model_of, tokens, monkeypatch
):
    monkeypatch.delitem(ARCHITECTURES, {"gpt2": "gpt2", "neox_parallel": "gpt_neox", "gemma2": "gemma2"}[family])
    model = load_model(make_hf(family))
    assert model.record()["map"] == "structural search"
    known = model_of(family)
    assert model.hook_names == known.hook_names
    values, expected = model.capture(tokens, model.hook_names), known.capture(tokens, model.hook_names)
    assert all(torch.equal(values[name], expected[name]) for name in values)


@pytest.mark.parametrize(
    ("family", "kind", "norms"),
    [
        ("phi", "parallel", ("input_layernorm", "input_layernorm", None, None)),
        ("cohere", "parallel", ("input_layernorm", "input_layernorm", None, None)),
        ("olmo2", "sequential", (None, None, "post_attention_layernorm", "post_feedforward_layernorm")),
        ("granite", "sequential", ("input_layernorm", "post_attention_layernorm", None, None)),
    ],
)
def test_families_that_the_table_does_not_have(family, kind, norms, model_of):
    model = model_of(family)
    assert lookup(model.hf.config) is None
    layout = model._map.parts.architecture.block
    assert layout.kind == kind
    assert (layout.ln1, layout.ln2, layout.ln1_post, layout.ln2_post) == norms
    assert layout.attention is not None
    assert layout.multiplier == ("residual_multiplier" if family == "granite" else None)


def test_post_norm_blocks_are_found_as_the_table_has_them(make_hf, model_of, tokens, monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "bert")
    model = LanguageModel(make_hf("bert"), None, name="bert")
    assert model.record()["map"] == "structural search"
    known = model_of("bert")
    assert model.hook_names == known.hook_names
    values, expected = model.capture(tokens, model.hook_names), known.capture(tokens, known.hook_names)
    assert all(torch.equal(values[name], expected[name]) for name in values)


def test_blocks_that_are_not_understood_keep_the_stream_and_refuse_the_rest(make_hf, tokens, monkeypatch):
    """Llama with scaled block outputs: its block is no sum of branches, so only what surely holds is offered."""
    monkeypatch.delitem(ARCHITECTURES, "llama")
    hf = make_hf("llama")
    for block in hf.model.layers:
        block.register_forward_hook(lambda _, args, out: out * 1.01)
    model = LanguageModel(hf, None, name="llama")
    stream = [f"blocks.{layer}.hook_resid_{end}" for layer in range(3) for end in ("pre", "post")]
    final = ("ln_final.hook_scale", "ln_final.hook_normalized")
    assert model.hook_names == ("hook_embed", *stream, *final)
    states = hf(tokens, output_hidden_states=True).hidden_states
    captured = model.capture(tokens, stream)
    for layer in range(3):
        # Two passes of a float64 model, one with gradients: sums may have another order (test_hooks.close says 1e-11).
        value, state = captured[f"blocks.{layer}.hook_resid_pre"], states[layer]
        torch.testing.assert_close(value, state.detach(), rtol=0, atol=1e-11)
    for layer in range(2):  # the last state of transformers is behind the final norm
        value, state = captured[f"blocks.{layer}.hook_resid_post"], states[layer + 1]
        torch.testing.assert_close(value, state.detach(), rtol=0, atol=1e-11)
    for name in ("blocks.0.attn.hook_z", "blocks.0.hook_mlp_out", "blocks.0.ln1.hook_normalized"):
        with pytest.raises(UserError, match="the inside of LlamaDecoderLayer was not recognized"):
            model.site(name)


def test_a_model_without_a_list_of_blocks_is_refused(make_hf, monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "llama")
    hf = make_hf("llama")
    hf.config.num_hidden_layers = 5
    with pytest.raises(UserError, match="num_hidden_layers=5 entries, so its blocks were not found"):
        search(hf)
