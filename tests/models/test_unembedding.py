"""The last product by itself: the model's own logits, and left out where they are more than it."""

from __future__ import annotations

import pytest
import torch

from conftest import FAMILIES
from monosema.models import load_model
from monosema.models.unembedding import Unembedding

MORE_THAN_THE_PRODUCT = {"gemma2", "cohere", "mamba"}
"""Soft-capped; scaled; rounded to float32, which float64 weights show."""


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_are_those_of_the_model(family, model_of, tokens):
    model = model_of(family)
    unembedding = Unembedding(model)
    assert (unembedding.site == "") == (family in MORE_THAN_THE_PRODUCT)
    if unembedding.site:
        with torch.no_grad():
            whole = model(tokens).flatten(0, 1)
            hidden = model.capture(tokens, [unembedding.site])[unembedding.site].flatten(0, 1)
        found = torch.cat([unembedding.logits(part).clone() for part in hidden.split(3)])
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_memory_is_used_again_and_grows(model_of):
    unembedding = Unembedding(model_of("gpt2"))
    hidden = torch.randn(90, 32, dtype=torch.float64)
    large = unembedding.logits(hidden[:7])
    assert unembedding.logits(hidden[:4]).data_ptr() == large.data_ptr()
    assert unembedding.logits(hidden).shape == (90, model_of("gpt2").vocab_size)


def test_an_edited_unembedding_is_left_to_the_model(model_of, tokens):
    model = model_of("gpt2")
    assert Unembedding(model, ["blocks.1.hook_resid_pre"]).site == "lm_head:in"
    assert Unembedding(model, ["lm_head:out"]).site == ""
    with model.edits({"lm_head:out": lambda logits: logits * 2}):
        assert Unembedding(model).site == ""


def test_a_model_without_a_head_has_none(make_hf):
    assert Unembedding(load_model(make_hf("gpt2").transformer)).site == ""


def test_under_autocast_the_model_multiplies_itself(make_hf):
    model = load_model(make_hf("gpt2", torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert Unembedding(model).site == ""
    assert Unembedding(model).site == "lm_head:in"
