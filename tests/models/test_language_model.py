"""The public face: names, capture, early stop, module paths, input checks, the logit lens, the record."""

from __future__ import annotations

import json

import pytest
import torch
from model_references import layer_norm

from monosema.core.errors import DataError, ShapeError, UnknownNameError, UserError
from monosema.models import load_model

EVERY_FAMILY = (
    "gpt2",
    "neox_parallel",
    "neox_sequential",
    "llama",
    "qwen3",
    "gemma2",
    "bert",
    "mamba",
    "phi",
    "cohere",
    "olmo2",
    "granite",
)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_hook_name_captures_its_width_alone_and_together(family, model_of, tokens):
    model = model_of(family)
    together = model.capture(tokens, model.hook_names)
    assert tuple(together) == model.hook_names
    for name in model.hook_names:
        site = model.site(name)
        assert (site.name, site.width) == (name, torch.Size(site.shape).numel())
        assert together[name].shape == (2, 9, site.width)
        if name.startswith("blocks.1.") or site.layer is None:
            assert torch.equal(model.capture(tokens, [name])[name], together[name])


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_facts_about_the_model(family, model_of):
    model = model_of(family)
    assert (model.d_model, model.n_layers, model.vocab_size) == (32, 3, 101)
    assert model.context_size == (None if family == "mamba" else 16)
    assert model.is_encoder == (family == "bert")
    assert (model.dtype, model.device.type) == (torch.float64, "cpu")
    assert not model.hf.training
    assert {0, 1} <= model.special_token_ids or family == "bert"


def test_captured_values_are_copies_that_in_place_blocks_cannot_change(make_hf, tokens):
    """Falcon adds its attention to the MLP's output in place, after the MLP returned it."""
    import transformers

    config = transformers.FalconConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=0, eos_token_id=1
    )
    model = load_model(transformers.FalconForCausalLM(config).double())
    names = [f"blocks.0.{name}" for name in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")]
    pre, attn, mlp, post = model.capture(tokens, names).values()
    torch.testing.assert_close(post, pre + attn + mlp, rtol=0, atol=1e-12)
    with model.edits({names[2]: lambda v: v + 1.0}):
        edited = model.capture(tokens, names)
    torch.testing.assert_close(edited[names[3]], post + 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "name", "n_blocks_entered"),
    [
        ("gpt2", "hook_embed", 0),
        ("gpt2", "blocks.0.hook_resid_pre", 1),
        ("llama", "blocks.0.hook_resid_post", 1),
        ("llama", "blocks.1.hook_resid_mid", 2),
        ("bert", "blocks.1.hook_resid_pre", 2),
        ("mamba", "blocks.0.hook_resid_post", 1),
        ("gemma2", "ln_final.hook_normalized", 3),
    ],
)
def test_capture_stops_the_forward_pass_at_the_deepest_site(family, name, n_blocks_entered, model_of, tokens):
    model = model_of(family)
    entered = []
    watched = [*(parts.block for parts in model._map.parts.blocks), model.hf.get_output_embeddings()]
    handles = [module.register_forward_pre_hook(lambda module, args: entered.append(module)) for module in watched]
    model.capture(tokens, ["hook_embed", name])
    for handle in handles:
        handle.remove()
    assert entered == watched[:n_blocks_entered]


def test_capture_records_no_gradients_and_leaves_requires_grad_alone(make_hf, tokens):
    hf = make_hf("llama")
    hf.model.embed_tokens.weight.requires_grad_(False)
    model = load_model(hf)
    assert not model.capture(tokens, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"].requires_grad
    recorded = []
    with model.edits({"hook_embed": lambda v: recorded.append(torch.is_grad_enabled()) or v}):
        model.capture(tokens, ["blocks.0.hook_resid_post"])
    assert recorded == [False]
    assert not hf.model.embed_tokens.weight.requires_grad
    assert hf.model.norm.weight.requires_grad
    assert model(tokens).requires_grad


def test_capture_inside_edits_sees_edited_values_and_capture_of_nothing_is_empty(model_of, tokens):
    model = model_of("gpt2")
    with model.edits({"blocks.0.hook_resid_post": lambda v: v * 0 + 7.0}):
        captured = model.capture(tokens, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"])
    assert all((value == 7.0).all() for value in captured.values())
    assert model.capture(tokens, []) == {}


def test_logits_are_those_of_the_transformers_model(model_of, tokens):
    for family in ("llama", "bert"):
        model = model_of(family)
        assert torch.equal(model(tokens), model.hf(tokens).logits)


def test_encoders_get_their_mask_and_token_types(model_of, tokens):
    model = model_of("bert")
    mask = torch.ones_like(tokens)
    mask[:, 6:] = 0
    types = torch.zeros_like(tokens)
    types[:, 3:] = 1
    name = "blocks.2.hook_resid_post"
    plain = model.capture(tokens, [name])[name]
    masked = model.capture(tokens, [name], attention_mask=mask)[name]
    typed = model.capture(tokens, [name], token_type_ids=types)[name]
    torch.testing.assert_close(masked[:, :6], model.capture(tokens[:, :6], [name])[name])
    assert not torch.allclose(masked[:, :6], plain[:, :6])
    assert not torch.allclose(typed, plain)
    assert torch.equal(
        model(tokens, attention_mask=mask, token_type_ids=types),
        model.hf(tokens, attention_mask=mask, token_type_ids=types).logits,
    )
    with pytest.raises(UserError, match="takes no token_type_ids"):
        model_of("llama")(tokens, token_type_ids=types)


def test_module_paths_and_modules_are_sites(model_of, tokens):
    model = model_of("llama")
    path = "model.layers.1.mlp"
    captured = model.capture(tokens, [f"{path}:in", f"{path}:out", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"])
    assert torch.equal(captured[f"{path}:in"], captured["blocks.1.mlp.hook_in"])
    assert torch.equal(captured[f"{path}:out"], captured["blocks.1.hook_mlp_out"])
    assert model.site(f"{path}.gate_proj:out").width == 48
    module = model.hf.get_submodule(path)
    assert model.site(module).name == f"{path}:out"
    assert torch.equal(model.capture(tokens, [module])[f"{path}:out"], captured[f"{path}:out"])
    with model.edits({module: lambda v: v + 1.0}):
        assert torch.equal(
            model.capture(tokens, ["blocks.1.hook_mlp_out"])["blocks.1.hook_mlp_out"], captured[f"{path}:out"]
        )
        post = model.capture(tokens, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
    clean = model.capture(tokens, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
    torch.testing.assert_close(post, clean + 1.0, rtol=0, atol=1e-12)


def test_measuring_a_module_paths_width_does_not_run_active_edits(make_hf, tokens):
    model, calls = load_model(make_hf("llama")), []
    with model.edits({"hook_embed": lambda v: calls.append(v.shape) or v}):
        assert model.site("model.layers.0.self_attn.q_proj:out").width == 32
    assert calls == []


def test_module_paths_that_are_no_sites_are_refused(model_of):
    model = model_of("llama")
    for name, error, message in (
        ("model.layers.1.mpl:in", UnknownNameError, "did you mean 'model.layers.1.mlp'"),
        ("model.layers.1.mlp:output", UserError, "must end in ':in' or ':out'"),
        ("model.embed_tokens:in", UserError, "is not a site"),
        ("model.layers:out", UserError, "was not called"),
    ):
        with pytest.raises(error, match=message):
            model.site(name)
    with pytest.raises(UserError, match="not a module of LlamaForCausalLM"):
        model.site(torch.nn.Linear(2, 2))


def test_unknown_names_offer_the_nearest(model_of):
    model = model_of("gpt2")
    for name, offered in (
        ("blocks.1.hook_resid_pots", "'blocks.1.hook_resid_post'"),
        ("blocks.7.hook_resid_post", "layers 0 to 2.*'blocks.2.hook_resid_post'"),
        ("hook_embedding", "'hook_embed'"),
        ("ln_final.hook_normalised", "'ln_final.hook_normalized'"),
    ):
        with pytest.raises(UnknownNameError, match=offered):
            model.site(name)


def test_pattern_is_eager_attentions_and_refused_otherwise(make_hf, model_of, tokens):
    name = "blocks.1.attn.hook_pattern"
    # Two orders of a float64 sum of n products a·b differ by 2 · n · 2^-53 · Σ|a·b| at most. Up to the second block's
    # scores n · Σ|a·b| adds up to less than 15,000, and a probability moves by less than its score: 4e-12. Llama
    # rounds to float32 in its norms and its softmax: 2^-24 each, of scores below 16.
    for family, bound in (("gpt2", 4e-12), ("llama", 1e-6), ("bert", 4e-12)):
        model = model_of(family)
        assert name not in model.hook_names
        pattern = model.capture(tokens, [name])[name]
        expected = model.hf(tokens, output_attentions=True).attentions[1].detach()
        torch.testing.assert_close(pattern, expected, rtol=0, atol=bound)
    fast = load_model(make_hf("llama", attn_implementation="sdpa"))
    with pytest.raises(UserError, match=r"needs eager attention.*'sdpa'"):
        fast.site(name)
    assert fast.hf.config._attn_implementation == "sdpa"


def test_tokens_are_checked(model_of):
    model = model_of("gpt2")
    for tokens, message in (
        (torch.zeros(1, 17, dtype=torch.long), "at most 16 tokens"),
        (torch.tensor([[3, 101]]), "token id 101 is not in the vocabulary.*0 to 100"),
        (torch.tensor([[3, -1]]), "token id -1"),
        (torch.tensor([3, 4]), r"integer tensor \[batch, token\], got torch.int64 \[2\]"),
        (torch.zeros(1, 2), "integer tensor"),
        (torch.zeros(1, 0, dtype=torch.long), "at least one token"),
    ):
        with pytest.raises(DataError, match=message):
            model.capture(tokens, ["hook_embed"])
        with pytest.raises(DataError, match=message):
            model(tokens)
    assert model(torch.tensor([[3, 100]], dtype=torch.int32)).shape == (1, 2, 101)


def test_logit_lens_of_a_layer_norm_is_centred_and_has_the_gain_folded(model_of, tokens):
    model = model_of("gpt2")
    stream = model.capture(tokens, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"]
    norm, unembed = model.hf.transformer.ln_f, model.hf.lm_head.weight
    scale, _ = layer_norm(stream, norm.eps)
    lens = model.logit_lens(stream.flatten(0, 1)).unflatten(0, (2, 9)) / scale + norm.bias @ unembed.T
    torch.testing.assert_close(lens, model(tokens))


def test_logit_lens_of_an_rms_norm(model_of, tokens):
    model = model_of("llama")
    stream = model.capture(tokens, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"]
    scale = (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    lens = model.logit_lens(stream.flatten(0, 1)).unflatten(0, (2, 9)) / scale
    torch.testing.assert_close(lens, model(tokens), rtol=1e-5, atol=1e-5)


def test_logit_lens_is_refused_where_it_is_undefined(model_of, make_hf):
    with pytest.raises(UserError, match="logit lens is not defined for BertForMaskedLM"):
        model_of("bert").logit_lens(torch.zeros(1, 32))
    with pytest.raises(UserError, match="logit lens is not defined for LlamaModel"):
        load_model(make_hf("llama").model).logit_lens(torch.zeros(1, 32))
    with pytest.raises(ShapeError, match=r"\[N, 32\], got \[32\]"):
        model_of("gpt2").logit_lens(torch.zeros(32))


def test_models_without_a_head_have_sites_but_no_logits(make_hf, tokens):
    model = load_model(make_hf("llama").model)
    assert model.capture(tokens, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"].shape == (2, 9, 32)
    with pytest.raises(UserError, match="no language-model head"):
        model(tokens)


def test_encoder_decoders_are_refused():
    import transformers

    config = transformers.T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(UserError, match="is an encoder-decoder"):
        load_model(transformers.T5ForConditionalGeneration(config))


def test_record_round_trips_through_json(model_of):
    record = model_of("llama").record()
    assert json.loads(json.dumps(record)) == record
    assert record["class"] == "LlamaForCausalLM"
    assert record["dtype"] == "float64"
    assert record["source"] == "model in memory"
    assert record["map"] == "architecture table"
    assert model_of("phi").record()["map"] == "structural search"
    assert "LlamaForCausalLM, decoder, 3 layers, d_model 32, float64 on cpu" in repr(model_of("llama"))
