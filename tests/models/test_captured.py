"""Captured values with gradients: those of an edit in the same place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from monosema.models import LanguageModel, load_model

SITES = ["hook_embed", "blocks.0.hook_resid_mid", "blocks.1.ln2.hook_normalized", "blocks.1.attn.hook_k"]
LATER = "blocks.2.hook_resid_pre"


def by_an_edit(model: LanguageModel, tokens: Tensor, name: str) -> Tensor:
    """The gradient of one logit by a site, through an edit that puts a leaf in its place."""
    leaf = model.capture(tokens, [name])[name].requires_grad_()
    with model.edits({name: lambda _: leaf}):
        (gradient,) = torch.autograd.grad(model(tokens)[0, -1, 5], leaf)
    return gradient


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox_parallel", "gemma2"])
def test_logits_are_differentiated_by_values(
    family: str, name: str, model_of: Callable[[str], LanguageModel], tokens: Tensor
):
    model = model_of(family)
    if name not in model.hook_names:
        assert family == "neox_parallel" and name.endswith("resid_mid")
        return
    logits, values = model.logits_and_sites(tokens, [name], detach=False)
    (gradient,) = torch.autograd.grad(logits[0, -1, 5], values[name])
    assert gradient.abs().max() > 0
    # Norms of Gemma compute in float32, whose rounding depends on the order of sums.
    torch.testing.assert_close(gradient, by_an_edit(model, tokens, name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_values_are_those_without_gradients_and_keep_their_own(
    family: str, model_of: Callable[[str], LanguageModel], tokens: Tensor
):
    model = model_of(family)
    names = [name for name in model.hook_names if "blocks.1" in name]
    plain = model.capture(tokens, names)
    kept = model.capture(tokens, names, detach=False)
    assert not any(value.requires_grad for value in plain.values())
    for name in names:
        assert torch.equal(plain[name], kept[name]) and kept[name].requires_grad, name
    with torch.no_grad():
        assert not model.capture(tokens, names[:1], detach=False)[names[0]].requires_grad
    logits, _ = model.logits_and_sites(tokens, names, detach=False)
    assert torch.equal(logits, model(tokens))


def test_later_values_are_differentiated_by_earlier_ones(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    """``hook_resid_post = hook_resid_mid + hook_mlp_out``: by either, and the pass ends at the last."""
    model = model_of("llama")
    names = [f"blocks.1.hook_{part}" for part in ("mlp_out", "resid_post")] + [LATER]
    values = model.capture(tokens, names, detach=False)
    for name in names[:2]:
        (gradient,) = torch.autograd.grad(values[LATER].sum(), values[name], retain_graph=True)
        torch.testing.assert_close(gradient, torch.ones_like(gradient))


def test_values_after_edits_keep_the_edits_gradients(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model = model_of("gpt2")
    steering = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with model.edits({"blocks.0.hook_resid_pre": lambda value: value + steering}):
        value = model.capture(tokens, ["blocks.0.hook_resid_pre"], detach=False)["blocks.0.hook_resid_pre"]
    (gradient,) = torch.autograd.grad(value.sum(), steering)
    assert gradient.tolist() == [float(tokens.numel())] * 32


def test_a_frozen_model_has_gradients_from_its_values_on(make_hf: Callable[..., Any], tokens: Tensor):
    model = load_model(make_hf("llama").requires_grad_(False))
    name = "blocks.1.hook_resid_pre"
    logits, values = model.logits_and_sites(tokens, [name], detach=False)
    (gradient,) = torch.autograd.grad(logits[0, -1, 5], values[name])
    torch.testing.assert_close(gradient, by_an_edit(model, tokens, name))


def test_one_head_and_the_whole(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model = model_of("gpt2")
    whole, head = "blocks.1.attn.hook_z", "blocks.1.attn.hook_z[2]"
    logits, values = model.logits_and_sites(tokens, [head, whole], detach=False)
    both = torch.autograd.grad(logits[0, -1, 5], [values[head], values[whole]])
    expected = by_an_edit(model, tokens, whole)
    torch.testing.assert_close(both[1], expected)
    torch.testing.assert_close(both[0], expected[..., 16:24])


def test_a_capture_only_site_gives_a_copy(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model, name = model_of("gpt2"), "blocks.1.ln1.hook_scale"
    logits, values = model.logits_and_sites(tokens, [name, "blocks.0.hook_resid_post"], detach=False)
    (gradient,) = torch.autograd.grad(values[name].sum(), values["blocks.0.hook_resid_post"], retain_graph=True)
    assert gradient.abs().max() > 0
    assert torch.autograd.grad(logits.sum(), values[name], allow_unused=True) == (None,)
