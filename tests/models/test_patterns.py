"""Patterns of models that run any attention: those of a model loaded eager, and the model as it was afterwards."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from monosema.core.errors import UserError
from monosema.models import LanguageModel, load_model
from monosema.models.patterns import PatternHeads, attention_pattern, pattern_heads, why_no_pattern


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "neox_parallel", "bert", "cohere"])
def test_the_pattern_is_that_of_eager_attention(family, make_hf, model_of, tokens):
    fast = load_model(make_hf(family, attn_implementation="sdpa"))
    before = fast(tokens)
    found = attention_pattern(fast, tokens, 1)
    expected = model_of(family).hf(tokens, output_attentions=True).attentions[1]
    # Two forward passes, whose float64 sums may have another order: a relative 1e-9 is far above its effect.
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    assert fast.hf.config._attn_implementation == "sdpa"
    assert torch.equal(fast(tokens), before)
    eager = model_of(family)
    torch.testing.assert_close(attention_pattern(eager, tokens, 1), expected.detach(), rtol=1e-9, atol=1e-12)
    assert eager.hf.config._attn_implementation == "eager"


def test_edits_change_it_and_documents_cut_it(make_hf, model_of, tokens):
    fast, eager = load_model(make_hf("llama", attn_implementation="sdpa")), model_of("llama")
    site, pattern = "blocks.1.attn.hook_k[1]", "blocks.1.attn.hook_pattern"
    with fast.edits({site: lambda v: v * 0}), eager.edits({site: lambda v: v * 0}):
        found = attention_pattern(fast, tokens, 1)
        torch.testing.assert_close(found, eager.capture(tokens, [pattern])[pattern], rtol=1e-9, atol=1e-12)
    n_seen = torch.arange(1, 10, dtype=torch.float64)
    for head in (2, 3):  # those that share key head 1
        torch.testing.assert_close(found[0, head].diagonal(), 1 / n_seen)
    assert not torch.allclose(found[0, 1].diagonal(), 1 / n_seen)
    documents = torch.tensor([[0] * 4 + [1] * 5] * 2)
    apart = attention_pattern(fast, tokens, 1, documents_BT=documents)
    assert apart[:, :, 4:, :4].eq(0).all()
    torch.testing.assert_close(apart[:, :, 4:, 4:], attention_pattern(fast, tokens[:, 4:], 1), rtol=1e-6, atol=1e-9)


def test_the_implementation_is_put_back_in_every_configuration_whatever_happens(make_hf, tokens):
    hf = make_hf("llama", attn_implementation="sdpa")
    model = load_model(hf)
    hf.model.layers[2].self_attn.config = type(hf.config)(**hf.config.to_dict())  # one that is no one else's
    hf.model.layers[2].self_attn.config._attn_implementation = "flex_attention"
    seen = []

    def fail(value):
        seen.append((hf.config._attn_implementation, hf.model.layers[2].self_attn.config._attn_implementation))
        raise RuntimeError("in the middle of the pass")

    with pytest.raises(RuntimeError, match="in the middle"), model.edits({"blocks.1.attn.hook_q[0]": fail}):
        attention_pattern(model, tokens, 1)
    assert seen == [("eager", "eager")]
    assert hf.config._attn_implementation == "sdpa"
    assert hf.model.layers[2].self_attn.config._attn_implementation == "flex_attention"


def test_other_threads_wait_until_the_model_is_as_it_was(make_hf, tokens):
    model = load_model(make_hf("llama", attn_implementation="sdpa"))
    seen: list[str] = []
    model.hf.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(model.hf.config._attn_implementation))
    other = threading.Thread(target=model, args=(tokens,))

    def start_another(value):
        if other.ident is None:
            other.start()
            other.join(0.2)
        return value

    with model.edits({"blocks.1.attn.hook_q": start_another}):
        attention_pattern(model, tokens, 1)
        other.join(30)
    assert seen == ["eager", "sdpa"]


def test_heads_that_a_site_decides(model_of):
    llama, gpt2 = model_of("llama"), model_of("gpt2")
    assert pattern_heads(llama, "blocks.1.attn.hook_q[0]") == PatternHeads(1, (0,))
    assert pattern_heads(llama, "blocks.1.attn.hook_q") == PatternHeads(1, (0, 1, 2, 3))
    assert pattern_heads(llama, "blocks.2.attn.hook_k[1]") == PatternHeads(2, (2, 3))
    assert pattern_heads(llama, "blocks.2.attn.hook_k") == PatternHeads(2, (0, 1, 2, 3))
    assert pattern_heads(gpt2, "blocks.0.attn.hook_k[3]") == PatternHeads(0, (3,))
    others = ("attn.hook_v", "attn.hook_v[0]", "attn.hook_z[1]", "attn.hook_result[1]", "hook_resid_pre", "mlp.hook_in")
    for name in (*(f"blocks.1.{other}" for other in others), "hook_embed", "model.layers.1.self_attn.q_proj:out"):
        assert pattern_heads(llama, name) is None


def test_which_key_heads_are_shared_by_which_query_heads_is_what_the_model_does(model_of, tokens):
    model = model_of("llama")
    clean = attention_pattern(model, tokens, 1)
    for part, n in (("q", 4), ("k", 2)):
        for index in range(n):
            name = f"blocks.1.attn.hook_{part}[{index}]"
            with model.edits({name: lambda v: v * -2.0}):
                moved = (attention_pattern(model, tokens, 1) != clean).any(-1).any(-1).any(0)
            assert pattern_heads(model, name) == PatternHeads(1, tuple(moved.nonzero().flatten().tolist()))


def test_a_model_that_gives_no_weights_says_why(tokens):
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=16)).eval()
    model = LanguageModel(hf, None, name="gpt2")
    assert why_no_pattern(model, 1) == ""
    own = hf.transformer.h[1].attn.forward
    hf.transformer.h[1].attn.forward = lambda *args, **kwargs: (own(*args, **kwargs)[0], None)
    assert why_no_pattern(model, 0) == ""
    assert "GPT2Attention returned no attention weights" in why_no_pattern(model, 1)
    with pytest.raises(UserError, match="output_attentions"):
        attention_pattern(model, tokens, 1)

    def broken(*args, **kwargs):
        raise NotImplementedError("eager is gone")

    hf.transformer.h[1].attn.forward = broken
    assert why_no_pattern(model, 1) == (
        "eager attention of GPT2LMHeadModel fails with NotImplementedError: eager is gone"
    )
