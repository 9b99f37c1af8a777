"""Encoder-decoders are refused, and the advice works."""

from __future__ import annotations

import pytest
import torch
import transformers

from monosema.core.errors import UserError
from monosema.models import load_model

BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
PAIRS = {
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "bart": ("BartForConditionalGeneration", {**BART, **HEADS}),
}


def make(family):
    class_name, options = PAIRS[family]
    cls = getattr(transformers, class_name)
    return cls(cls.config_class(vocab_size=101, **options)).eval()


@pytest.mark.parametrize("family", list(PAIRS))
def test_the_encoder_that_the_error_names_loads(family, tokens):
    hf = make(family)
    with pytest.raises(UserError, match=r"is an encoder-decoder.*load_model\(model.get_encoder\(\), tokenizer=name\)"):
        load_model(hf)
    model = load_model(hf.get_encoder())
    assert model.is_encoder
    name = "blocks.1.hook_resid_pre"
    states = hf.get_encoder()(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.capture(tokens, [name])[name], states[1])


@pytest.mark.parametrize("family", list(PAIRS))
def test_a_decoder_without_its_encoder_is_refused(family):
    with pytest.raises(UserError, match="or the decoder of one"):
        load_model(make(family).get_decoder())


def test_an_encoder_that_cannot_be_loaded_either_is_not_advised():
    hf = make("bart")
    hf.get_encoder().layers = torch.nn.ModuleList()
    with pytest.raises(UserError, match=r"Its encoder alone cannot be loaded either: .*blocks were not found"):
        load_model(hf)
