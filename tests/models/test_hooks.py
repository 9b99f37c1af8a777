"""Edits: what a constant added at each site does downstream, in float64, by the residual equation and nothing else."""

from __future__ import annotations

import pytest
import torch
from model_references import plain_inputs, plain_output
from torch import nn

from monosema.core.errors import ShapeError, UserError

SEQUENTIAL = ("gpt2", "neox_sequential", "llama", "qwen3", "gemma2", "olmo2", "granite")
PARALLEL = ("neox_parallel", "phi", "cohere")
TRANSFORMERS = (*SEQUENTIAL, *PARALLEL, "bert")
EVERY_FAMILY = (*TRANSFORMERS, "mamba")
STREAM = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


def constant(width: int) -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, width, dtype=torch.float64)


def shift(model, tokens, edited: str, observed: list[str]) -> dict[str, torch.Tensor]:
    """How observed sites move when a constant is added at a site."""
    before = model.capture(tokens, observed)
    with model.edits({edited: lambda v: v + constant(v.shape[-1])}):
        after = model.capture(tokens, observed)
    return {name: after[name] - before[name] for name in observed}


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order of float64 sums.

    Two orders of a sum of n products a·b differ by 2 · n · 2^-53 · Σ|a·b| at most. In each of these models
    n · Σ|a·b|, added over all of its linear maps, is below 45,000 (largest in Gemma 2: n ≤ 48, Σ|a·b| ≤ 820), which
    gives 2 · 45,000 · 2^-53 = 1e-11.
    """
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=0, atol=1e-11)


def gain_of(model, module: nn.Module) -> torch.Tensor:
    return (module.weight + (1.0 if model.hf.config.model_type == "gemma2" else 0.0)).detach()


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_resid_pre_is_replaced_for_everything_that_reads_it(family, model_of, tokens):
    model = model_of(family)
    # The edited stream must be what the block itself computes with when it is called with that input.
    moved = shift(model, tokens, "blocks.1.hook_resid_pre", ["blocks.1.hook_resid_pre"])
    close(moved["blocks.1.hook_resid_pre"], constant(32))
    with model.edits({"blocks.1.hook_resid_pre": lambda v: v + constant(32)}):
        edited = model(tokens)
    handle = _blocks(model)[1].register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] + constant(32), *args[1:]), kwargs), with_kwargs=True
    )
    by_hand = model.hf(tokens).logits
    handle.remove()
    close(edited, by_hand)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox_parallel", "bert", "mamba", "phi", "olmo2"])
def test_resid_post_is_the_next_blocks_input(family, model_of, tokens):
    model = model_of(family)
    last = "hook_normalized_resid_post" if family == "bert" else "hook_resid_post"
    with model.edits({f"blocks.0.{last}": lambda v: v + constant(32)}):
        (received,) = plain_inputs(model.hf, [_blocks(model)[1]], tokens)
    (before,) = plain_inputs(model.hf, [_blocks(model)[1]], tokens)
    close(received - before, constant(32))


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_sequential_blocks_obey_the_residual_equation(family, model_of, tokens):
    model = model_of(family)
    pre, attn, mid, mlp, post = names = [f"blocks.1.{name}" for name in STREAM]
    moved = shift(model, tokens, attn, names)
    close(moved[attn], constant(32))
    close(moved[mid], constant(32))
    close(moved[post] - moved[mlp], constant(32))
    moved = shift(model, tokens, mlp, names)
    close(moved[post], constant(32))
    close(moved[mid], torch.zeros(32, dtype=torch.float64))
    moved = shift(model, tokens, pre, names)
    close(moved[pre], constant(32))
    close(moved[mid] - moved[attn], constant(32))
    close(moved[post] - moved[attn] - moved[mlp], constant(32))


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_resid_mid_moves_the_skip_path_and_what_the_mlp_branch_reads(family, model_of, tokens):
    model = model_of(family)
    block = _blocks(model)[1]
    reader = {
        "gpt2": lambda: block.ln_2,
        "olmo2": lambda: block.mlp,
        "gemma2": lambda: block.pre_feedforward_layernorm,
    }.get(family, lambda: block.post_attention_layernorm)()
    (before,) = plain_inputs(model.hf, [reader], tokens)
    with model.edits({"blocks.1.hook_resid_mid": lambda v: v + constant(32)}):
        (received,) = plain_inputs(model.hf, [reader], tokens)
    close(received - before, constant(32))
    names = [f"blocks.1.{name}" for name in STREAM]
    moved = shift(model, tokens, "blocks.1.hook_resid_mid", names)
    close(moved["blocks.1.hook_resid_post"] - moved["blocks.1.hook_mlp_out"], constant(32))
    close(moved["blocks.1.hook_attn_out"], torch.zeros(32, dtype=torch.float64))
    assert moved["blocks.1.hook_mlp_out"].abs().max() > 1e-3


@pytest.mark.parametrize("family", PARALLEL)
def test_parallel_blocks_obey_the_residual_equation(family, model_of, tokens):
    model = model_of(family)
    names = [f"blocks.1.{name}" for name in STREAM if name != "hook_resid_mid"]
    pre, attn, mlp, post = names
    zero = torch.zeros(32, dtype=torch.float64)
    moved = shift(model, tokens, attn, names)
    close(moved[post], constant(32))
    close(moved[mlp], zero)
    moved = shift(model, tokens, mlp, names)
    close(moved[post], constant(32))
    close(moved[attn], zero)
    moved = shift(model, tokens, pre, names)
    close(moved[post] - moved[attn] - moved[mlp], constant(32))


def test_post_norm_blocks_obey_their_equation(model_of, tokens):
    model = model_of("bert")
    _, attn, mid, mlp, post = names = [f"blocks.1.{name}" for name in STREAM]
    middle, last = "bert.encoder.layer.1.attention.output.LayerNorm:out", "blocks.1.hook_normalized_resid_post"
    observed = [*names, middle, last, "blocks.2.hook_resid_pre"]
    moved = shift(model, tokens, attn, observed)
    close(moved[mid], constant(32))
    moved = shift(model, tokens, mid, observed)
    close(moved[attn], torch.zeros(32, dtype=torch.float64))
    close(moved[post] - moved[middle] - moved[mlp], torch.zeros(32, dtype=torch.float64))
    assert moved[middle].abs().max() > 1e-3
    moved = shift(model, tokens, mlp, observed)
    close(moved[post], constant(32))
    moved = shift(model, tokens, "blocks.1.ln1.hook_normalized", observed)
    gain = model.hf.bert.encoder.layer[1].attention.output.LayerNorm.weight.detach()
    close(moved[middle], constant(32) * gain)
    close(moved[post] - moved[mlp], constant(32) * gain)
    moved = shift(model, tokens, "blocks.1.mlp.hook_in", observed)
    close(moved[middle], torch.zeros(32, dtype=torch.float64))
    close(moved[post], moved[mlp])
    moved = shift(model, tokens, last, observed)
    close(moved["blocks.2.hook_resid_pre"], constant(32))


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("part", ["ln1", "ln1_post", "ln2", "ln2_post"])
def test_hook_normalized_is_written_as_delta_times_gain_at_the_norms_output(family, part, model_of, tokens):
    model = model_of(family)
    name = f"blocks.1.{part}.hook_normalized"
    if name not in model.hook_names or not model.site(name).writable:
        assert (family, part) in {("phi", "ln2"), ("cohere", "ln2")} or name not in model.hook_names
        return
    module = model._map.parts.blocks[1].modules[part]
    moved = shift(model, tokens, name, [f"blocks.1.{part}.hook_scale", name])
    close(moved[name], constant(32))
    close(moved[f"blocks.1.{part}.hook_scale"], torch.zeros(1, dtype=torch.float64))
    before = plain_output(model.hf, module, tokens)
    with model.edits({name: lambda v: v + constant(32)}):
        after = plain_output(model.hf, module, tokens)
    close(after - before, constant(32) * gain_of(model, module))


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox_sequential", "gemma2"])
def test_editing_a_norm_never_reaches_the_skip_path(family, model_of, tokens):
    model = model_of(family)
    names = [f"blocks.1.{name}" for name in STREAM]
    moved = shift(model, tokens, "blocks.1.ln2.hook_normalized", names)
    close(moved["blocks.1.hook_resid_mid"], torch.zeros(32, dtype=torch.float64))
    close(moved["blocks.1.hook_resid_post"], moved["blocks.1.hook_mlp_out"])
    assert moved["blocks.1.hook_mlp_out"].abs().max() > 1e-3


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_edits_inside_the_branches_pass_through_the_last_projection(family, model_of, tokens):
    model = model_of(family)
    parts = model._map.parts.blocks[1]
    for site, projection, raw_output in (
        ("attn.hook_z", parts.modules["o"], "attn_out"),
        ("mlp.hook_post", parts.modules["mlp_down"], "mlp_out"),
    ):
        before = plain_output(model.hf, parts.modules[raw_output], tokens)
        with model.edits({f"blocks.1.{site}": lambda v: v + constant(v.shape[-1])}):
            after = plain_output(model.hf, parts.modules[raw_output], tokens)
        weight = projection.weight.detach()
        matrix = weight if type(projection).__name__ == "Conv1D" else weight.T
        close(after - before, constant(matrix.shape[0]) @ matrix)


@pytest.mark.parametrize(("family", "kv_columns"), [("gpt2", slice(32, 64)), ("llama", None), ("neox_parallel", None)])
def test_editing_keys_changes_the_key_columns_only(family, kv_columns, model_of, tokens):
    model = model_of(family)
    names = [f"blocks.1.attn.hook_{part}" for part in "qkv"]
    moved = shift(model, tokens, names[1], names)
    close(moved[names[0]], torch.zeros(1, dtype=torch.float64))
    close(moved[names[1]], constant(moved[names[1]].shape[-1]))
    close(moved[names[2]], torch.zeros(1, dtype=torch.float64))
    if family == "gpt2":
        raw = shift(model, tokens, names[1], ["transformer.h.1.attn.c_attn:out"])["transformer.h.1.attn.c_attn:out"]
        close(raw[..., kv_columns], constant(32))
        close(raw[..., :32], torch.zeros(32, dtype=torch.float64))
    if family == "neox_parallel":
        path = "gpt_neox.layers.1.attention.query_key_value:out"
        raw = shift(model, tokens, names[1], [path])[path].unflatten(-1, (4, 3, 8))
        close(raw[..., 1, :].flatten(2), constant(32))
        close(raw[..., [0, 2], :], torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_writable_site_can_be_edited_and_an_edit_that_changes_nothing_changes_no_bit(family, model_of, tokens):
    model = model_of(family)
    clean = model(tokens)
    writable = [name for name in model.hook_names if model.site(name).writable]
    with model.edits(dict.fromkeys(writable, lambda v: v)):
        assert torch.equal(model(tokens), clean)
    with model.edits(dict.fromkeys(writable, lambda v: v.mul_(1.0))):
        assert torch.equal(model(tokens), clean)
    for name in writable:
        if name.startswith(("blocks.0", "blocks.2")) and not name.endswith("hook_resid_post"):
            continue
        with model.edits({name: lambda v: v * 1.5 + constant(v.shape[-1])}):
            edited = model.capture(tokens, [name])[name]
            changed = model(tokens)
        before = model.capture(tokens, [name])[name]
        close(edited, before * 1.5 + constant(before.shape[-1]))
        assert not torch.allclose(changed, clean, atol=1e-6), f"{name} has no effect on the logits"


def test_read_only_sites_say_why(model_of):
    model = model_of("phi")
    for name, reason in (
        ("blocks.0.ln1.hook_scale", "computes its scale from its input"),
        ("blocks.0.attn.hook_result", "sum over heads; edit attn.hook_z"),
        ("blocks.0.attn.hook_pattern", "after it used them"),
        ("blocks.0.ln2.hook_normalized", "share one norm.*edit ln1.hook_normalized"),
    ):
        assert not model.site(name).writable
        with pytest.raises(UserError, match=f"captured but not edited: .*{reason}"), model.edits({name: lambda v: v}):
            pass


def test_a_shared_norms_second_name_sees_the_edit_of_the_first(model_of, tokens):
    moved = shift(model_of("phi"), tokens, "blocks.0.ln1.hook_normalized", ["blocks.0.ln2.hook_normalized"])
    close(moved["blocks.0.ln2.hook_normalized"], constant(32))


def test_edits_see_upstream_edits_and_nested_contexts_compose_outer_first(model_of, tokens):
    model = model_of("llama")
    seen = {}

    def note(name, change):
        def edit(v):
            seen[name] = v.clone()
            return change(v)

        return edit

    clean = model.capture(tokens, ["blocks.1.hook_attn_out", "blocks.1.hook_resid_mid"])
    # Entered in the opposite order of the computation: the order of the sites decides, not that of the contexts.
    with (
        model.edits({"blocks.1.hook_resid_mid": note("mid", lambda v: v * 2)}),
        model.edits({"blocks.1.hook_attn_out": note("attn", lambda v: v + 1)}),
        model.edits({"blocks.1.hook_attn_out": note("attn again", lambda v: v * 3)}),
    ):
        captured = model.capture(tokens, ["blocks.1.hook_resid_mid", "blocks.1.hook_resid_pre"])
    attn = clean["blocks.1.hook_attn_out"]
    close(seen["attn"], attn)
    close(seen["attn again"], attn + 1)
    close(seen["mid"], captured["blocks.1.hook_resid_pre"] + (attn + 1) * 3)
    close(captured["blocks.1.hook_resid_mid"], seen["mid"] * 2)
    assert torch.equal(
        model.capture(tokens, ["blocks.1.hook_resid_mid"])["blocks.1.hook_resid_mid"], clean["blocks.1.hook_resid_mid"]
    )


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_mid", "blocks.0.ln1.hook_normalized", "blocks.0.hook_resid_pre"])
def test_edits_may_work_in_place(name, model_of, tokens):
    model = model_of("gpt2")
    with model.edits({name: lambda v: v.mul_(2.0).add_(constant(32))}):
        in_place = model(tokens)
    with model.edits({name: lambda v: v * 2.0 + constant(32)}):
        assert torch.equal(model(tokens), in_place)
    assert not torch.equal(model(tokens), in_place)


def test_edits_of_one_norm_compose(model_of, tokens):
    model, name = model_of("gpt2"), "blocks.0.ln1.hook_normalized"
    clean = model.capture(tokens, [name])[name]
    with model.edits({name: lambda v: v * 2}), model.edits({name: lambda v: v + 1}):
        close(model.capture(tokens, [name])[name], clean * 2 + 1)
        (received,) = plain_inputs(model.hf, [model.hf.transformer.h[0].attn], tokens)
    norm = model.hf.transformer.h[0].ln_1
    close(received, ((clean * 2 + 1) * norm.weight + norm.bias).detach())


# Gemma's norms compute in float32, which bounds how well a difference quotient can agree.
@pytest.mark.parametrize(("family", "size", "rtol"), [("gpt2", 1e-5, 1e-6), ("gemma2", 1e-3, 5e-2)])
def test_gradients_flow_through_edits(family, size, rtol, model_of, tokens):
    """By central differences. Gemma's norms are in float32, whose rounding the larger step divides by more."""
    model = model_of(family)
    steering = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    for name in ("hook_embed", "blocks.0.hook_resid_mid", "blocks.1.ln2.hook_normalized", "blocks.1.mlp.hook_in"):
        with model.edits({name: lambda v: v + steering}):
            (gradient,) = torch.autograd.grad(model(tokens)[0, -1, 5], steering)
        values = []
        for step in (size * constant(32), -size * constant(32)):
            with model.edits({name: lambda v, step=step: v + step}), torch.no_grad():
                values.append(model(tokens)[0, -1, 5])
        expected = (values[0] - values[1]) / (2 * size)
        torch.testing.assert_close(gradient @ constant(32), expected, rtol=rtol, atol=1e-6)
        assert gradient.abs().max() > 0


def test_hooks_are_removed_when_the_context_ends_and_when_something_raises(model_of, tokens):
    model = model_of("llama")

    def n_hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())

    model(tokens)
    before, clean = n_hooks(), model(tokens)

    def fail(v):
        raise RuntimeError("inside the edit")

    with model.edits({"blocks.1.hook_resid_mid": lambda v: v}):
        assert n_hooks() > before
    assert n_hooks() == before
    with pytest.raises(RuntimeError, match="inside the edit"), model.edits({"blocks.1.hook_resid_mid": fail}):
        model(tokens)
    assert n_hooks() == before
    with pytest.raises(RuntimeError, match="inside the edit"), model.edits({"blocks.1.hook_resid_mid": fail}):
        model.capture(tokens, ["blocks.1.hook_resid_post"])
    assert n_hooks() == before
    assert torch.equal(model(tokens), clean)
    assert not model._interceptor._memory, "activations outlive the context"


def test_wrong_shapes_and_non_tensors_are_refused(model_of, tokens):
    model = model_of("llama")
    with (
        model.edits({"blocks.0.attn.hook_k": lambda v: v[..., :-1]}),
        pytest.raises(ShapeError, match=r"'blocks.0.attn.hook_k' returned shape \[2, 9, 15\].*\[2, 9, 16\]"),
    ):
        model(tokens)
    with model.edits({"blocks.0.attn.hook_k": lambda v: None}), pytest.raises(UserError, match="returned NoneType"):
        model(tokens)


def test_edits_return_to_the_sites_dtype(make_hf, tokens):
    from monosema.models import load_model

    model = load_model(make_hf("llama", torch.bfloat16))
    with model.edits({"blocks.0.hook_resid_post": lambda v: v.float() + 1.0}):
        assert model(tokens).dtype == torch.bfloat16


def test_edits_reach_generation(model_of):
    model = model_of("gpt2")
    prompt = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    clean = model.hf.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    favourite = model.hf.lm_head.weight[42].detach() * 1e3
    with model.edits({"ln_final.hook_normalized": lambda v: v * 0 + favourite / model.hf.transformer.ln_f.weight}):
        steered = model.hf.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert steered[0, 3:].tolist() == [42, 42, 42]
    assert clean[0, 3:].tolist() != [42, 42, 42]


def _blocks(model) -> list[nn.Module]:
    return [parts.block for parts in model._map.parts.blocks]
