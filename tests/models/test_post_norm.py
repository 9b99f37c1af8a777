"""Post-norm families outside the table: what each name means, against hooks on the modules written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from monosema.core.errors import UserError
from monosema.models import LanguageModel, load_model

BERT = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
}
BART = {
    "vocab_size": 101,
    "d_model": 32,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 24,
}
GPT1 = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
OPT = {
    "vocab_size": 101,
    "hidden_size": 32,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "do_layer_norm_before": False,
    "max_position_embeddings": 24,
}
MOBILE = {**BERT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}

# Class, options, and the paths in a block: attention's last map, the two norms, the MLP's first and last map.
BERT_PATHS = (
    "attention.output.dense",
    "attention.output.LayerNorm",
    "output.LayerNorm",
    "intermediate.dense",
    "output.dense",
)
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, str, str, str, str]]] = {
    "xlm_roberta": ("XLMRobertaForMaskedLM", BERT, BERT_PATHS),
    "camembert": ("CamembertForMaskedLM", BERT, BERT_PATHS),
    "data2vec": ("Data2VecTextForMaskedLM", BERT, BERT_PATHS),
    "ernie": ("ErnieForMaskedLM", BERT, BERT_PATHS),
    "deberta_v2": ("DebertaV2ForMaskedLM", BERT, BERT_PATHS),
    "mpnet": (
        "MPNetForMaskedLM",
        BERT,
        ("attention.attn.o", "attention.LayerNorm", "output.LayerNorm", "intermediate.dense", "output.dense"),
    ),
    "bart_decoder": (
        "BartForCausalLM",
        BART,
        ("self_attn.out_proj", "self_attn_layer_norm", "final_layer_norm", "fc1", "fc2"),
    ),
    "gpt1": ("OpenAIGPTLMHeadModel", GPT1, ("attn.c_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")),
}


def make(class_name: str, options: dict[str, Any]) -> Any:
    """A random model whose gains and biases are far from one and zero."""
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    hf = cls(cls.config_class(**options)).double().eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter) + (1.0 if name.endswith("weight") else 0.0))
    return hf


@pytest.mark.parametrize("family", list(FAMILIES))
def test_names_mean_what_they_mean_in_bert(family, tokens):
    class_name, options, (attn, ln1, ln2, first, last) = FAMILIES[family]
    hf = make(class_name, options)
    model = LanguageModel(hf, None, name=family)
    block = model.blocks[1]
    sums: dict[str, Tensor] = {}

    def keep(name: str, side: str) -> Any:
        module = block.get_submodule(name) if name else block
        if side == "in":
            return module.register_forward_pre_hook(lambda _, args: sums.__setitem__(f"{name}:in", args[0]))
        return module.register_forward_hook(
            lambda _, args, out: sums.__setitem__(f"{name}:out", out if isinstance(out, Tensor) else out[0])
        )

    wanted = [(attn, "out"), (ln1, "in"), (ln1, "out"), (ln2, "in"), (ln2, "out"), (first, "in"), (last, "out")]
    handles = [keep(*each) for each in [*wanted, (last, "in"), (first, "out"), (attn, "in"), ("", "out")]]
    with torch.no_grad():
        hf(input_ids=tokens)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(sums[f"{ln2}:in"], sums[f"{ln2}:out"], atol=0.1), "the norm changes its input"
    torch.testing.assert_close(sums[f"{ln2}:in"], sums[f"{ln1}:out"] + sums[f"{last}:out"])
    expected = {
        "attn.hook_z": sums[f"{attn}:in"],
        "hook_attn_out": sums[f"{attn}:out"],
        "hook_resid_mid": sums[f"{ln1}:in"],
        "mlp.hook_in": sums[f"{ln1}:out"],
        "mlp.hook_pre": sums[f"{first}:out"],
        "mlp.hook_post": sums[f"{last}:in"],
        "hook_mlp_out": sums[f"{last}:out"],
        "hook_resid_post": sums[f"{ln2}:in"],
        "hook_normalized_resid_post": sums[":out"],
    }
    found = model.capture(tokens, [f"blocks.1.{name}" for name in expected])
    for name, value in expected.items():
        torch.testing.assert_close(found[f"blocks.1.{name}"], value, rtol=0, atol=0)
    before = model.capture(tokens, ["blocks.0.hook_normalized_resid_post", "blocks.1.hook_resid_pre"])
    assert torch.equal(*before.values())
    assert not model.site("blocks.1.hook_resid_post").read_only_reason


@pytest.mark.parametrize(("class_name", "options"), [("MobileBertForMaskedLM", MOBILE), ("OPTForCausalLM", OPT)])
def test_where_the_sum_is_not_found_the_name_is_refused_and_the_other_given(class_name, options, tokens):
    hf = make(class_name, options)
    model = LanguageModel(hf, None, name=class_name)
    for layer in range(2):
        name = f"blocks.{layer}.hook_normalized_resid_post"
        with pytest.raises(UserError, match=rf"the sum before the norm was not found; use '{name}'"):
            model.site(f"blocks.{layer}.hook_resid_post")
    outputs: list[Any] = []
    handle = model.blocks[1].register_forward_hook(lambda _, args, out: outputs.append(out))
    with torch.no_grad():
        hf(input_ids=tokens)
    handle.remove()
    (output,) = outputs
    value = output if isinstance(output, Tensor) else output[0]
    assert torch.equal(model.capture(tokens, [name])[name], value)


def test_pre_norm_blocks_that_are_not_understood_keep_their_name(tokens):
    """RoBERTa with norms in front: opaque to the search, but its output is a sum."""
    hf = make("RobertaPreLayerNormForMaskedLM", BERT)
    model = load_model(hf)
    layout = model._map.parts.architecture.block
    assert layout.kind == "opaque"
    found = model.capture(tokens, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"])
    assert torch.equal(*found.values())
    with pytest.raises(UserError, match="only post-norm models norm the stream"):
        model.site("blocks.0.hook_normalized_resid_post")
