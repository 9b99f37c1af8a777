"""Notes on dictionaries that meet another model, other weights, or a plain model after processed ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import monosema as ms
from monosema.coders.site_transform import SiteTransform, site_transform_of
from monosema.core.errors import ConfigError
from monosema.data.cache.expectations import record_differences
from monosema.data.trained_on import log_model_notes, model_notes

BLOCK = "blocks.0."
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_result")
"""Sites that lose their mean when what writes to the stream is centered."""


@pytest.fixture(scope="module")
def gpt2() -> ms.LanguageModel:
    torch.manual_seed(0)
    return ms.load_model(GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=16)))


@pytest.fixture(scope="module")
def llama() -> ms.LanguageModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ms.load_model(LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=16, max_position_embeddings=16)))


def coder(site: str, out: str | None = None, **transform: bool) -> ms.SparseCoder:
    made = ms.SAE(8, 16, activation=ms.ReLU())
    made.bind(site, out or site, {"site_transform": transform})
    return made


def test_a_centered_dictionary_is_noted_where_a_layer_norm_model_has_a_mean(gpt2, llama) -> None:
    for name in RESIDUAL:
        notes = model_notes(coder(BLOCK + name, centered=True), gpt2)
        assert len(notes) == 1
        assert f"{BLOCK}{name} was centered over its width" in notes[0]
        assert model_notes(coder(BLOCK + name, centered=True), llama) == [], (
            "TransformerLens centers LayerNorm models only"
        )
    for name in ("ln1.hook_normalized", "attn.hook_q", "attn.hook_z", "mlp.hook_in", "mlp.hook_pre", "mlp.hook_post"):
        assert model_notes(coder(BLOCK + name, centered=True), gpt2) == []
    assert "hook_embed was centered" in model_notes(coder("hook_embed", centered=True), gpt2)[0]
    assert "centered" in model_notes(coder("transformer.h.0:out", centered=True), gpt2)[0]


@pytest.mark.parametrize(
    ("transform", "affected", "unaffected"),
    [
        ("norms_folded", ["mlp.hook_in"], ["ln2.hook_normalized", "hook_resid_pre", "mlp.hook_post"]),
        ("value_biases_folded", ["attn.hook_v", "attn.hook_z[1]"], ["attn.hook_q", "hook_attn_out"]),
        ("attention_refactored", ["attn.hook_q", "attn.hook_k", "attn.hook_z"], ["hook_attn_out", "hook_resid_pre"]),
        ("norm_outputs_after_gain", ["ln1.hook_normalized", "ln2.hook_normalized"], ["mlp.hook_in", "hook_resid_pre"]),
    ],
)
def test_each_processing_is_noted_where_it_matters(transform, affected, unaffected, gpt2) -> None:
    for name in affected:
        assert f"{BLOCK}{name} was " in model_notes(coder(BLOCK + name, **{transform: True}), gpt2)[0]
    for name in unaffected:
        assert model_notes(coder(BLOCK + name, **{transform: True}), gpt2) == []


def test_other_transforms(gpt2, llama) -> None:
    assert "factor of the embedding" in model_notes(coder("hook_embed", embedding_unscaled=True), llama)[0]
    assert model_notes(coder(BLOCK + "hook_resid_pre", embedding_unscaled=True), llama) == []
    assert model_notes(coder(BLOCK + "ln1.hook_normalized", norm_outputs_after_gain=True), llama) == []
    maybe = coder(BLOCK + "hook_resid_pre", centering_unknown=True)
    assert "does not say how the model's weights were processed" in model_notes(maybe, gpt2)[0]
    assert model_notes(maybe, llama) == []
    assert model_notes(coder(BLOCK + "mlp.hook_post", centering_unknown=True), gpt2) == []


def test_both_sites_of_a_transcoder_are_noted(gpt2) -> None:
    made = coder(BLOCK + "mlp.hook_in", BLOCK + "hook_mlp_out", centered=True, norms_folded=True)
    (note,) = model_notes(made, gpt2)
    assert "mlp.hook_in was before the norm's gain" in note
    assert "hook_mlp_out was centered" in note


def test_sites_of_several_models_are_noted_by_their_own(gpt2, llama) -> None:
    sites = [f"{key}:{BLOCK}hook_resid_pre" for key in ("rms", "ln")]
    (note,) = model_notes(coder("+".join(sites), centered=True), {"rms": llama, "ln": gpt2})
    assert "ln:blocks.0.hook_resid_pre was centered" in note
    assert note.count("was centered") == 1, "only the model with LayerNorm was"


def test_training_on_a_plain_model_ends_a_transform(gpt2) -> None:
    made = coder(BLOCK + "hook_resid_pre", centered=True)
    made.bind("a", "a", {})
    made.bind("a", "a", {"rows": {}})
    assert made.site_transform == SiteTransform(centered=True)
    made.bind("a", "a", {"model": gpt2.record()})
    assert made.site_transform == SiteTransform()
    stack = ms.CLT((4, 4), (4, 4), 8, activation=ms.ReLU())
    stack.bind("a+b", "c+d", {"site_transform": {"centered": True}})
    assert stack.site_transform.centered
    stack.bind("a+b", "c+d", {"models": {"x": gpt2.record()}})
    assert stack.site_transform == SiteTransform()


def test_a_transform_has_known_fields_that_are_true_or_false() -> None:
    for wrong in ({"centred": True}, {"centered": 1}):
        with pytest.raises(ConfigError):
            site_transform_of({"site_transform": wrong})


def record(**changes: Any) -> dict[str, Any]:
    return {"name": "m", "commit": None, "d_model": 8, "dtype": "float32", "fingerprint": "aa", **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"name": "elsewhere"}, []),
        ({"fingerprint": "bb"}, ["fingerprint of the weights: aa -> bb"]),
        ({"fingerprint": "bb", "name": "n"}, ["name: m -> n", "fingerprint of the weights: aa -> bb"]),
        ({"fingerprint": "bb", "dtype": "bfloat16"}, ["fingerprint of the weights: aa -> bb"]),
        ({"fingerprint": "bb", "dtype": "float16"}, []),
        ({"fingerprint": None}, []),
        ({"fingerprint": None, "name": "n"}, ["name: m -> n"]),
    ],
)
def test_weights_tell_models_apart(changes: dict[str, Any], expected: list[str]) -> None:
    assert record_differences(record(), record(**changes)) == expected


def test_other_weights_are_noted_and_logged(gpt2, caplog) -> None:
    made = ms.SAE(8, 16, activation=ms.ReLU())
    made.bind(BLOCK + "hook_resid_pre", BLOCK + "hook_resid_pre", {"model": gpt2.record()})
    assert model_notes(made, gpt2) == []
    made.metadata["model"] = {**gpt2.record(), "fingerprint": "0" * 16}
    (note,) = model_notes(made, gpt2)
    assert "trained on another model (fingerprint of the weights: 0000000000000000 -> " in note
    log_model_notes(made, gpt2)
    assert note in caplog.text
