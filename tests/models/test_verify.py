"""Wrong maps are refused, with the equation that does not hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monosema.core.errors import UserError
from monosema.models import ARCHITECTURES, AttentionLayout, BlockLayout, LanguageModel
from monosema.models.architectures import lookup
from monosema.models.verify import probe_tokens


def load_with(hf, **changes) -> LanguageModel:
    known = lookup(hf.config)
    assert known is not None
    architecture = replace(known, block=replace(known.block, **changes))
    return LanguageModel(hf, None, name="wrong", architecture=architecture)


def swapped(layout: BlockLayout, *pairs: tuple[str, str]) -> dict[str, object]:
    return {a: getattr(layout, b) for pair in pairs for a, b in (pair, pair[::-1])}


ATTN_AND_MLP = (("attn_in", "mlp_in"), ("attn_out", "mlp_out"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox_parallel", "neox_sequential", "bert"])
def test_attention_and_mlp_swapped(family, make_hf):
    hf = make_hf(family)
    layout = lookup(hf.config).block
    inside = {"attention": None, "mlp_gate": None, "mlp_up": None, "mlp_down": None}
    with pytest.raises(UserError, match=r"does not fit this model: .*does not hold"):
        load_with(hf, **swapped(layout, *ATTN_AND_MLP), **inside)


def test_attention_and_mlp_swapped_where_no_sum_can_tell(make_hf):
    """A parallel block with one norm is symmetric in its branches; only attention looks at other positions."""
    hf = make_hf("neox_parallel")
    for block in hf.gpt_neox.layers:
        block.post_attention_layernorm.load_state_dict(block.input_layernorm.state_dict())
    layout = lookup(hf.config).block
    inside = {"attention": None, "mlp_gate": None, "mlp_down": None}
    with pytest.raises(UserError, match="does not carry information between positions"):
        load_with(hf, **swapped(layout, *ATTN_AND_MLP), **inside)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox_parallel", "neox_sequential", "bert"])
def test_norms_swapped(family, make_hf):
    hf = make_hf(family)
    with pytest.raises(UserError, match=r"block 0: .*does not hold"):
        load_with(hf, **swapped(lookup(hf.config).block, ("ln1", "ln2")))


@pytest.mark.parametrize(
    ("family", "changes", "equation"),
    [
        ("neox_parallel", {"kind": "sequential"}, "resid_mid = resid_pre \\+ attn_out"),
        ("neox_sequential", {"kind": "parallel"}, "MLP reads resid_pre"),
        ("gemma2", {"ln1_post": None}, "resid_mid = resid_pre \\+ attn_out"),
        ("gemma2", {"ln2": None}, "resid_mid = resid_pre \\+ attn_out"),
        ("llama", {"kind": "post_norm"}, "attention input = resid_pre"),
        ("llama", {"mlp_gate": "mlp.up_proj", "mlp_up": "mlp.gate_proj"}, "hook_post = activation"),
        ("llama", {"mlp_down": "self_attn.o_proj"}, "MLP output = its last projection's output"),
    ],
)
def test_other_wrong_blocks(family, changes, equation, make_hf):
    with pytest.raises(UserError, match=equation):
        load_with(make_hf(family), **changes)


@pytest.mark.parametrize(
    ("family", "attention", "fact"),
    [
        ("gpt2", {"fused_layout": "grouped"}, "hook_v is not what attention averages"),
        ("neox_parallel", {"fused_layout": "concatenated"}, "hook_v is not what attention averages"),
        ("bert", {"q": "attention.self.key", "k": "attention.self.query"}, "not the queries and the keys"),
        ("llama", {"k": "self_attn.v_proj", "v": "self_attn.k_proj"}, "hook_v is not what attention averages"),
        ("llama", {"q": "self_attn.k_proj", "k": "self_attn.q_proj"}, "heads of query, key and value do not fit"),
        ("llama", {"o": "mlp.down_proj"}, "attention output = its last projection's output"),
        ("llama", {"q": "mlp.gate_proj"}, "q reads the input of attn_in"),
    ],
)
def test_wrong_attention_projections(family, attention, fact, make_hf):
    hf = make_hf(family)
    layout: AttentionLayout = lookup(hf.config).block.attention
    with pytest.raises(UserError, match=fact):
        load_with(hf, attention=replace(layout, **attention))


def test_one_wrong_block_among_right_ones_is_found(make_hf):
    hf = make_hf("gpt2")
    block = hf.transformer.h[2]

    def parallel(x, *args, **kwargs):
        return x + block.attn(block.ln_1(x))[0] + block.mlp(block.ln_2(x))

    block.forward = parallel
    with pytest.raises(UserError, match=r"model: block 2: resid_mid = resid_pre \+ attn_out"):
        LanguageModel(hf, None, name="odd")


def test_a_wrong_final_norm_is_found(make_hf):
    hf = make_hf("llama")
    wrong = replace(lookup(hf.config), ln_final="layers.1.input_layernorm")
    with pytest.raises(UserError, match="ln_final input = last block's output"):
        LanguageModel(hf, None, name="wrong", architecture=wrong)


def test_paths_that_do_not_exist_are_named(make_hf):
    with pytest.raises(UserError, match=r"GPT2Block has no module 'ln_3' \(it has ln_1, attn, ln_2, mlp\)"):
        load_with(make_hf("gpt2"), ln1="ln_3")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox_parallel", "bert", "mamba", "olmo2", "cohere"])
def test_right_maps_pass_in_every_dtype(family, dtype, make_hf, model_of):
    model = LanguageModel(make_hf(family, dtype), None, name=family)
    assert model.hook_names == model_of(family).hook_names
    measured = {type(rule.module): (rule.centred, rule.gain_offset) for rule in model._map.measured.norms.values()}
    assert set(measured.values()) == {
        (family in ("gpt2", "neox_parallel", "bert", "cohere"), 1.0 if family == "gemma2" else 0.0)
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_swapped_norms_are_found_in_bfloat16_too(family, make_hf):
    hf = make_hf(family, torch.bfloat16)
    with pytest.raises(UserError, match="block 0"):
        load_with(hf, **swapped(lookup(hf.config).block, ("ln1", "ln2")))


def test_probe_rows_differ_in_one_token_each_and_avoid_special_tokens():
    rows = probe_tokens(20, frozenset({0, 1, 2}), torch.device("cpu"), None)
    assert rows.shape == (3, 8)
    assert (rows[1] != rows[0]).tolist() == [True] + [False] * 7
    assert (rows[2] != rows[0]).tolist() == [False] * 7 + [True]
    assert rows.min() > 2
    assert probe_tokens(20, frozenset(), torch.device("cpu"), 4).shape == (3, 4)


def test_the_table_is_data():
    assert {"gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "bert", "mamba"} <= set(ARCHITECTURES)
