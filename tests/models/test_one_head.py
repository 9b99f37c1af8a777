"""One head of a site with heads: its value and its edit against plain PyTorch hooks on the projections."""

from __future__ import annotations

import pytest
import torch
from model_references import plain_inputs, plain_output

from monosema.core.errors import ShapeError, UnknownNameError, UserError

Z = "blocks.1.attn.hook_z"


def projection_inputs(model, tokens) -> torch.Tensor:
    """What the output projection of block 1 of a Llama reads, [B, T, H * K]."""
    (value,) = plain_inputs(model.hf, [model.hf.model.layers[1].self_attn.o_proj], tokens)
    return value


@pytest.mark.parametrize(("part", "n_heads"), [("q", 4), ("k", 2), ("v", 2)])
def test_a_heads_query_key_and_value_are_its_columns_of_the_projection(part, n_heads, model_of, tokens):
    model = model_of("llama")
    projection = getattr(model.hf.model.layers[1].self_attn, f"{part}_proj")
    by_hand = plain_output(model.hf, projection, tokens)
    names = [f"blocks.1.attn.hook_{part}[{head}]" for head in range(n_heads)]
    captured = model.capture(tokens, names)
    assert list(captured) == names
    for head, name in enumerate(names):
        site = model.site(name)
        assert (site.name, site.width, site.shape, site.layer, site.writable) == (name, 8, (8,), 1, True)
        assert torch.equal(captured[name], by_hand[..., head * 8 : head * 8 + 8])


def test_heads_of_fused_projections_follow_their_layout(model_of, tokens):
    gpt2 = model_of("gpt2")
    fused = plain_output(gpt2.hf, gpt2.hf.transformer.h[0].attn.c_attn, tokens)
    value = gpt2.capture(tokens, ["blocks.0.attn.hook_k[2]"])["blocks.0.attn.hook_k[2]"]
    assert torch.equal(value, fused[..., 32 + 16 : 32 + 24])
    neox = model_of("neox_parallel")  # [q0 k0 v0 | q1 k1 v1 | ...]
    fused = plain_output(neox.hf, neox.hf.gpt_neox.layers[0].attention.query_key_value, tokens)
    value = neox.capture(tokens, ["blocks.0.attn.hook_v[1]"])["blocks.0.attn.hook_v[1]"]
    assert torch.equal(value, fused[..., 24 + 16 : 24 + 24])
    with neox.edits({"blocks.0.attn.hook_v[1]": lambda v: v * 0 + 2.0}):
        edited = neox(tokens)

    def replace(module, args, output):
        output = output.clone()
        output[..., 40:48] = 2.0
        return output

    handle = neox.hf.gpt_neox.layers[0].attention.query_key_value.register_forward_hook(replace)
    by_hand = neox.hf(tokens).logits
    handle.remove()
    assert torch.equal(edited, by_hand)


def test_a_head_and_the_whole_are_captured_in_one_call(model_of, tokens):
    model = model_of("llama")
    result = "blocks.1.attn.hook_result"
    names = [f"{Z}[3]", Z, f"{Z}[0]", f"{result}[2]", "blocks.1.hook_attn_out"]
    captured = model.capture(tokens, names)
    assert list(captured) == names
    z = projection_inputs(model, tokens)
    assert torch.equal(captured[Z], z)
    assert torch.equal(captured[f"{Z}[3]"], z[..., 24:])
    assert torch.equal(captured[f"{Z}[0]"], z[..., :8])
    W_O = model.hf.model.layers[1].self_attn.o_proj.weight.detach()
    torch.testing.assert_close(captured[f"{result}[2]"], z[..., 16:24] @ W_O[:, 16:24].T)
    assert model.site(f"{result}[2]").width == 32


def test_an_edit_changes_that_heads_slice_and_nothing_else(model_of, tokens):
    model = model_of("llama")
    clean = projection_inputs(model, tokens)
    seen = []

    def edit(v):
        seen.append(v.clone())
        return v.mul_(-2.0)  # in place, which must not reach the neighbours

    with model.edits({f"{Z}[1]": edit}):
        edited = projection_inputs(model, tokens)
        captured = model.capture(tokens, [Z, f"{Z}[1]"])
    assert torch.equal(seen[0], clean[..., 8:16])
    expected = clean.clone()
    expected[..., 8:16] *= -2.0
    assert torch.equal(edited, expected)
    assert torch.equal(captured[Z], expected), "the whole, captured, has the edit of the head"
    assert torch.equal(captured[f"{Z}[1]"], expected[..., 8:16])


def test_edits_of_heads_and_of_the_whole_compose_outer_first(model_of, tokens):
    model = model_of("llama")
    clean = projection_inputs(model, tokens)
    with model.edits({f"{Z}[0]": lambda v: v + 1.0}), model.edits({Z: lambda v: v * 3.0}):
        head_first = projection_inputs(model, tokens)
    with model.edits({Z: lambda v: v * 3.0}), model.edits({f"{Z}[0]": lambda v: v + 1.0, f"{Z}[3]": lambda v: v * 0}):
        whole_first = projection_inputs(model, tokens)
    expected = clean * 3.0
    expected[..., :8] = (clean[..., :8] + 1.0) * 3.0
    assert torch.equal(head_first, expected)
    expected[..., :8] = clean[..., :8] * 3.0 + 1.0
    expected[..., 24:] = 0.0
    assert torch.equal(whole_first, expected)


def test_gradients_flow_through_an_edit_of_a_head(model_of, tokens):
    model = model_of("llama")
    delta = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    whole = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with model.edits({f"{Z}[2]": lambda v: v + delta}):
        (gradient,) = torch.autograd.grad(model(tokens)[0, -1, 5], delta)
    with model.edits({Z: lambda v: v + whole}):
        (expected,) = torch.autograd.grad(model(tokens)[0, -1, 5], whole)
    torch.testing.assert_close(gradient, expected[16:24])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{Z}[4]", r"unknown head '4' of 'blocks.1.attn.hook_z', which has 4 heads: write an index from 0 to 3"),
        ("blocks.1.attn.hook_k[2]", r"has 2 key-value heads: write an index from 0 to 1"),
        ("blocks.1.attn.hook_v[3]", r"has 2 key-value heads"),
        ("blocks.1.attn.hook_result[9]", r"has 4 heads"),
        (f"{Z}[-1]", r"unknown head '-1'.* from 0 to 3"),
        (f"{Z}[01]", r"unknown head '01'"),
        (f"{Z}[]", r"unknown head ''"),
        ("blocks.9.attn.hook_z[0]", r"layers 0 to 2"),
    ],
)
def test_a_wrong_index_says_how_many_heads_there_are(name, message, model_of, tokens):
    model = model_of("llama")
    with pytest.raises(UnknownNameError, match=message):
        model.site(name)
    with pytest.raises(UnknownNameError, match=message):
        model.capture(tokens, [name])


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern", "model.layers.1.mlp:in"])
def test_brackets_on_a_site_without_heads_are_refused(name, model_of):
    with pytest.raises(UserError, match=r"cannot be cut into heads; .* works on attn.hook_q, .* and attn.hook_result"):
        model_of("llama").site(f"{name}[0]")


def test_what_the_whole_refuses_a_head_refuses_too(model_of, tokens):
    model = model_of("llama")
    name = "blocks.0.attn.hook_result[1]"
    with pytest.raises(UserError, match=r"'blocks.0.attn.hook_result\[1\]' can be captured but not edited: .*sum over"):
        model.edits({name: lambda v: v}).__enter__()
    with (
        model.edits({f"{Z}[1]": lambda v: v[..., :-1]}),
        pytest.raises(ShapeError, match=r"'blocks.1.attn.hook_z\[1\]' returned shape \[2, 9, 7\].*\[2, 9, 8\]"),
    ):
        model(tokens)
    with pytest.raises(UserError, match="state-space block has neither"):
        model_of("mamba").site(f"{Z}[0]")
