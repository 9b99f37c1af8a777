"""Values that are not [batch, token, width] are refused by name, when the model is loaded and at each capture."""

from __future__ import annotations

import pytest
import torch
import transformers

from monosema.core.errors import ShapeError, UserError
from monosema.models import load_model
from monosema.models.verify import probe_tokens


def several_streams():
    """Gemma 3n carries four streams, [stream, batch, token, width]."""
    config = transformers.Gemma3nTextConfig(
        vocab_size=101,
        vocab_size_per_layer_input=101,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.Gemma3nForCausalLM(config).eval()


def test_a_transposed_stream_is_refused_when_loaded():
    config = transformers.XLNetConfig(vocab_size=101, d_model=32, n_layer=2, n_head=4, d_inner=48)
    with pytest.raises(UserError, match=r"XLNetLMHeadModel cannot be loaded: .*\[3, 8, 32\].*gives \[8, 3, 32\]"):
        load_model(transformers.XLNetLMHeadModel(config))


def test_more_positions_than_tokens_are_refused_when_loaded():
    config = transformers.CpmAntConfig(
        vocab_size=101, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=48, num_hidden_layers=2
    )
    with pytest.raises(UserError, match=r"CpmAntForCausalLM cannot be loaded: .*gives \[3, 40, 32\]"):
        load_model(transformers.CpmAntForCausalLM(config))


def test_only_the_names_of_several_streams_are_refused(tokens):
    model = load_model(several_streams())
    assert not model.is_encoder
    assert model.hook_names == ("hook_embed",)
    assert model.capture(tokens, ["hook_embed"])["hook_embed"].shape == (2, 9, 32)
    for name in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"):
        with pytest.raises(UserError, match=rf"no '{name}': expected .*\[3, 8, 32\].*gives \[4, 3, 8, 32\]"):
            model.site(name)


def test_another_width_is_refused_with_the_module_path(tokens):
    config = transformers.ElectraConfig(
        vocab_size=101, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    model = load_model(transformers.ElectraForMaskedLM(config))
    path = "electra.embeddings.word_embeddings:out"
    with pytest.raises(UserError, match=rf"gives \[3, 8, 16\]; the module path '{path}' reads it"):
        model.capture(tokens, ["hook_embed"])
    assert model.capture(tokens, [path])[path].shape == (2, 9, 16)


def test_a_value_that_changes_its_layout_later_is_refused_at_capture(model_of, tokens, monkeypatch):
    model = model_of("gpt2")
    name = "blocks.1.hook_resid_post"
    block = model.blocks[1]
    handle = block.register_forward_hook(lambda _, args, out: out.transpose(0, 1), prepend=True)
    try:
        with pytest.raises(ShapeError, match=rf"cannot capture '{name}': .*\[2, 9, 32\].*gives \[9, 2, 32\]"):
            model.capture(tokens, [name])
    finally:
        handle.remove()


def test_probe_tokens_have_no_square_shape():
    assert [probe_tokens(20, frozenset(), torch.device("cpu"), limit).shape[1] for limit in (2, 3, 4, 9)] == [
        2,
        2,
        4,
        8,
    ]
