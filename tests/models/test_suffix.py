"""The suffix of a model: equal to whole passes, on every architecture, and left out where it is not."""

from __future__ import annotations

import itertools

import pytest
import torch

from conftest import FAMILIES
from monosema.models import load_model
from monosema.models.suffix import Suffix

SITES = {
    "blocks.1.hook_resid_pre": 1,
    "blocks.1.hook_resid_post": 2,
    "blocks.2.hook_mlp_out": 2,
    "blocks.1.attn.hook_z": 1,
    "hook_embed": 0,
    "ln_final.hook_normalized": 3,
}


def counted(model):
    """Calls of each block's own forward, counted from now on."""
    calls = [0] * model.n_layers

    def count(index):
        def before(*_):
            calls[index] += 1

        return before

    for index, block in enumerate(model.blocks):
        next(iter(block.children())).register_forward_pre_hook(count(index))
    return calls


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_resumed_pass_is_a_whole_one_to_the_bit(family, model_of, tokens):
    model = model_of(family)
    for name in SITES:
        if name not in model.hook_names or not model.site(name).writable:
            continue

        def edit(value):
            return value * 0.5 + 0.1

        suffix = Suffix(model, [name])
        assert suffix.n_blocks <= SITES[name]
        start = next(iter(model.capture(tokens, suffix.start).values()), None)
        with torch.no_grad(), model.edits({name: edit}):
            expected = model(tokens)
            with suffix.resumed(start):
                found = model(tokens)
            again = model(tokens)
        assert torch.equal(found, expected)
        assert torch.equal(again, expected)
        assert not torch.equal(expected, model(tokens))


@pytest.mark.parametrize(("name", "n_blocks"), SITES.items())
def test_blocks_before_the_site_do_not_run(name, n_blocks, model_of, tokens):
    model = model_of("llama")
    suffix = Suffix(model, [name])
    assert suffix.n_blocks == n_blocks
    start = next(iter(model.capture(tokens, suffix.start).values()), None)
    calls = counted(model)
    with suffix.resumed(start):
        model(tokens)
    assert calls == [0] * n_blocks + [1] * (3 - n_blocks)


def test_where_two_passes_differ_in_a_bit_every_pass_is_whole(make_hf, tokens):
    """As where a processor's kernels depend on what ran before: nothing is left out."""
    model = load_model(make_hf("llama"))
    passes = itertools.count()
    model.blocks[2].register_forward_hook(lambda module, args, output: output * (1 + 2.0**-20 * next(passes)))
    suffix = Suffix(model, ["blocks.1.hook_resid_post"])
    assert suffix.n_blocks == 0 and suffix.start == () and suffix.start_name == ""
    calls = counted(model)
    with suffix.resumed(None):
        model(tokens)
    assert calls == [1, 1, 1]


def test_of_several_sites_the_first_says_where_to_begin(model_of):
    model = model_of("gpt2")
    assert Suffix(model, ["blocks.2.hook_resid_post", "blocks.1.hook_mlp_out"]).n_blocks == 1
    assert Suffix(model, []).n_blocks == 0


def test_a_model_under_edits_is_run_whole(model_of):
    model = model_of("gpt2")
    with model.edits({"blocks.0.hook_mlp_out": lambda value: value * 2}):
        assert Suffix(model, ["blocks.2.hook_resid_post"]).n_blocks == 0


def test_a_block_that_hands_on_more_than_its_activation_is_not_left_out(make_hf):
    model = load_model(make_hf("gpt2"))
    first, second = model.blocks[:2]
    first.register_forward_hook(lambda module, args, output: setattr(second, "seen", output * 1.0))
    second.register_forward_hook(lambda module, args, output: output + second.seen)
    assert Suffix(model, ["blocks.2.hook_resid_pre"]).n_blocks == 0
    assert all("forward" not in block.__dict__ for block in model.blocks)


def test_a_forward_set_before_is_there_again_whatever_happens(make_hf):
    model = load_model(make_hf("gpt2"))
    own = model.blocks[0].forward
    model.blocks[0].__dict__["forward"] = own
    suffix = Suffix(model, ["blocks.2.hook_resid_pre"])
    assert suffix.n_blocks == 2
    with pytest.raises(RuntimeError, match="in the middle"), suffix.resumed(torch.zeros(2, 3, model.d_model)):
        raise RuntimeError("in the middle")
    assert model.blocks[0].__dict__["forward"] is own
    assert "forward" not in model.blocks[1].__dict__
