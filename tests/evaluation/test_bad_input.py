"""Input that cannot be evaluated, or means something else than it seems to: each is refused, or noted, with its fix."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_tiny import BOS, MASK, SITE, VOCABULARY, WIDTH, random_sae, tiny_decoder
from torch import Tensor

from monosema.coders import SAE, ActivationConfig, BatchTopK, Gated, JumpReLU, ReLU, TopK
from monosema.core.errors import ConfigError, DataError, ShapeError, UnknownNameError
from monosema.data import ActivationStream, Tokens, TokenSplit, load_tokens
from monosema.evaluation import evaluate, evaluate_many, evaluate_replacement
from monosema.features import collect_features
from monosema.models import LanguageModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_language import byte_tokenizer

NAN, INF = math.nan, math.inf


def words(n: int = VOCABULARY, **renamed: int) -> Any:
    """As much of a tokenizer as lists its tokens: ``w0`` is 0, but for those renamed."""
    vocabulary = {f"w{i}": i for i in range(n)} | renamed
    return SimpleNamespace(
        get_vocab=lambda: vocabulary,
        all_special_ids=[BOS, MASK],
        unk_token_id=None,
        bos_token_id=BOS,
        mask_token_id=MASK,
    )


def speaking(tokenizer: Any) -> LanguageModel:
    return LanguageModel(tiny_decoder().hf, tokenizer, name="tiny-llama")


def tokens_of(contexts: Tensor, tokenizer: Any = None) -> Tokens:
    split = TokenSplit(contexts.int(), frozenset({BOS}), "heldout")
    return Tokens(split, split, {"source": "text"}, tokenizer)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, tokens: evaluate(random_sae(), model, tokens, progress=False),
        lambda model, tokens: evaluate_replacement(random_sae("blocks.0.hook_mlp_out"), model, tokens, progress=False),
        lambda model, tokens: ActivationStream(model, tokens, SITE, batch_size=8),
        lambda model, tokens: collect_features(random_sae(), model, tokens, progress=False),
    ],
    ids=["evaluate", "replacement", "stream", "features"],
)
def test_tokens_of_another_tokenizer_are_refused(contexts: Tensor, measure: Callable[[Any, Any], Any]):
    model = speaking(words())
    for theirs, problem in (
        (words(w7=8, w8=7), r"'w8' is 7 in 'the tokens' and 8 in 'tiny-llama'"),
        (
            words(VOCABULARY - 1, other=VOCABULARY - 1),
            r"'other' is in 'the tokens' alone; 'w49' is in 'tiny-llama' alone",
        ),
    ):
        with pytest.raises(
            ConfigError, match=rf"another tokenizer than that of tiny-llama: {problem}.*model.tokenizer"
        ):
            measure(model, tokens_of(contexts, theirs))


def test_tokens_of_an_equal_tokenizer_or_of_none_are_evaluated(contexts: Tensor):
    coder, own = random_sae(), words()
    plain = evaluate(coder, tiny_decoder(), contexts, progress=False).fve
    for model, tokenizer in (
        (speaking(own), own),
        (speaking(words()), own),
        (speaking(words(padding=VOCABULARY)), own),  # a token added at an id of its own
        (speaking(own), words(padding=VOCABULARY)),
        (speaking(own), None),
        (speaking(None), own),
    ):
        assert evaluate(coder, model, tokens_of(contexts, tokenizer), progress=False).fve == pytest.approx(plain)


def test_tokenizers_that_list_no_tokens_are_compared_by_what_they_encode(contexts: Tensor):
    def unlisted(first: int, n: int) -> Any:
        class Encoder:
            all_special_ids, unk_token_id, bos_token_id, mask_token_id = (BOS, MASK), None, BOS, MASK

            def __len__(self) -> int:
                return n

            def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
                return {"input_ids": [first + len(text)]}

        return Encoder()

    model = speaking(unlisted(0, VOCABULARY))
    assert evaluate(random_sae(), model, tokens_of(contexts, unlisted(0, VOCABULARY + 1)), progress=False).fve < 1
    with pytest.raises(ConfigError, match=r"tiny-llama: they encode .* differently"):
        evaluate(random_sae(), model, tokens_of(contexts, unlisted(1, VOCABULARY)), progress=False)


def test_loaded_tokens_know_their_tokenizer(tmp_path: Path):
    tokenizer = byte_tokenizer()
    texts = [f"text number {i}, long enough for several contexts of eight" for i in range(20)]
    for options in ({}, {"in_memory": False}):
        tokens = load_tokens(texts, tokenizer, 8, heldout_fraction=0.2, **options)
        assert tokens.tokenizer is tokenizer
    from monosema.data import pretokenize

    pretokenize(texts, tokenizer, 8, tmp_path / "packed", heldout_fraction=0.2)
    assert load_tokens(tmp_path / "packed", tokenizer).tokenizer is tokenizer
    assert "object" not in repr(tokens) and dataclasses.replace(tokens, tokenizer=None) == tokens


def test_a_dictionary_of_another_model_is_noted(contexts: Tensor):
    coder, model = random_sae(), tiny_decoder()
    coder.bind(SITE, SITE, {"model": model.record()})
    assert not any("another model" in note for note in evaluate(coder, model, contexts, progress=False).notes)
    coder.bind(
        SITE, SITE, {"model": {**model.record(), "name": "gpt2", "class": "GPT2LMHeadModel", "fingerprint": "0" * 16}}
    )
    (note,) = (note for note in evaluate(coder, model, contexts, progress=False).notes if "another model" in note)
    assert "name: gpt2 -> tiny-llama" in note and "class: GPT2LMHeadModel -> LlamaForCausalLM" in note


@pytest.mark.parametrize("site", ["blocks.7.hook_resid_pre", "transformer.h.1", "model.layers.9", "resid"])
def test_sites_of_another_model_are_refused(site: str, decoder: LanguageModel, contexts: Tensor):
    with pytest.raises(UnknownNameError, match=f"unknown hook name.*{site!r}; (did you mean|known)"):
        evaluate(random_sae(site), decoder, contexts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tokens": 0}, "n_tokens must be at least 1, or None, got 0"),
        ({"n_tokens": -5}, "n_tokens must be at least 1, or None, got -5"),
        ({"n_loss_tokens": -1}, "n_loss_tokens must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": -2}, "batch_size must be at least 1"),
        ({"n_batches": 3}, "of text use n_tokens"),
    ],
)
def test_options_without_sense_are_refused(options: dict, message: str, decoder: LanguageModel, contexts: Tensor):
    for run in (evaluate, lambda coder, *rest, **given: evaluate_many({"a": coder}, *rest, **given)):
        with pytest.raises(ConfigError, match=message):
            run(random_sae(), decoder, contexts, **options)


def test_nothing_to_evaluate_or_to_evaluate_with(decoder: LanguageModel, contexts: Tensor):
    with pytest.raises(ConfigError, match="no coder given"):
        evaluate_many({}, decoder, contexts)
    with pytest.raises(ConfigError, match=r"mapping of models is empty; name at least one"):
        evaluate(random_sae(), {}, contexts)
    nothing = TokenSplit(torch.zeros(0, 8, dtype=torch.int32), frozenset(), "heldout")
    for tokens, how in (
        (nothing, "give more text"),
        (Tokens(nothing, nothing, {"source": "text"}), r"load_tokens\(\.\.\., heldout_fraction=0\.02\) sets some"),
        (
            Tokens(nothing, nothing, {"source": "text", "heldout_fraction": 0.1}),
            "too few documents to fill a context of 8 tokens .*; give load_tokens more text or a smaller context_size",
        ),
    ):
        with pytest.raises(DataError, match=rf"the heldout split holds no context to read; .*{how}"):
            evaluate(random_sae(), decoder, tokens)
    for special in (torch.full((4, 6), BOS), torch.empty(4, 0, dtype=torch.long)):
        with pytest.raises(
            DataError, match=r"at least 2 tokens that are not special, got 0; give more text|nothing to read"
        ):
            evaluate(random_sae(), decoder, special)


def test_text_too_short_for_a_context_is_refused_before_there_is_anything_to_evaluate():
    with pytest.raises(DataError, match="fills no context of 64 tokens; give more text or a smaller context_size"):
        load_tokens(["short"], byte_tokenizer(), 64, heldout_fraction=0.0)
    with pytest.raises(DataError, match=r"text is empty|fills no context"):
        load_tokens([""], byte_tokenizer(), 8, heldout_fraction=0.0)
    tokens = load_tokens(["long enough for two contexts"], byte_tokenizer(), 8, heldout_fraction=0.0)
    model = tiny_decoder()
    with pytest.raises(DataError, match=r"the heldout split holds no context to read"):
        evaluate(random_sae(), model, tokens)


def test_contexts_in_which_nothing_is_predicted_leave_losses_undefined_and_say_so(
    decoder: LanguageModel, contexts: Tensor
):
    for alone in (contexts[:, 1:2], contexts[:, :2]):  # one token; BOS and one
        report = evaluate(random_sae(), decoder, alone, progress=False)
        assert report.n_predicted_tokens == 0
        assert all(map(math.isnan, (report.ce_clean, report.ce_loss_score, report.kl, report.top1_agreement)))
        assert any("no prediction counted" in note and "longer contexts" in note for note in report.notes)
        assert math.isfinite(report.fve)
        assert not {name for name in report.intervals if "ce" in name or "kl" in name}
        mlp = "blocks.0.hook_mlp_out"
        replaced = evaluate_replacement(random_sae(mlp), decoder, alone, progress=False)
        assert any("no prediction counted" in note for note in replaced.notes)


@pytest.mark.parametrize("bad", [50, -1, 2**31 + 5, 2**32 + 5])
def test_ids_beyond_the_vocabulary_are_refused(bad: int, decoder: LanguageModel, contexts: Tensor):
    contexts = contexts.clone()
    contexts[3, 4] = bad
    with pytest.raises(DataError, match=r"outside the vocabulary of tiny-llama|no vocabulary has"):
        evaluate(random_sae(), decoder, contexts)


@pytest.mark.parametrize("activation", [ReLU(), TopK(k=2), BatchTopK(k=2), JumpReLU(), Gated()], ids=str)
def test_whatever_is_not_finite_in_a_dictionary_is_named(activation: ActivationConfig):
    coder = SAE(WIDTH, 24, activation=activation, dtype="float64")
    rows = torch.randn(9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    held = [*coder.named_parameters(), *coder.named_buffers()]
    assert len(held) >= 4
    for name, values in held:
        kept = values.detach().clone()
        for bad in (NAN, INF, -INF):
            with torch.no_grad():
                values.view(-1)[-1] = bad
            with pytest.raises(
                DataError, match=rf"the coder's {name} must be finite, but 1 of {values.numel()} .*{bad}"
            ):
                evaluate(coder, activations=rows)
        with torch.no_grad():
            values.copy_(kept)
    assert math.isfinite(evaluate(coder, activations=rows).fve)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_logits_and_activations_that_are_not_finite_are_told_apart(bad: float, contexts: Tensor):
    model = tiny_decoder()
    with torch.no_grad():
        model.hf.get_output_embeddings().weight[7] = bad
    with pytest.raises(
        DataError, match=r"cross-entropy of the clean run is .* at batch 0; the model's logits are not finite"
    ):
        evaluate(random_sae(), model, contexts)
    model = tiny_decoder()
    with torch.no_grad():
        model.hf.model.layers[0].mlp.down_proj.weight[2, 2] = bad
    with pytest.raises(DataError, match=rf"activations read at '{SITE}', batch 0 must be finite.*overflow in float16"):
        evaluate(random_sae(), model, contexts)


def test_overflow_in_float16_is_named_where_it_happens(contexts: Tensor):
    coder = random_sae(dtype="float32")
    for layer, message in (
        ("get_input_embeddings", "activations read at"),
        ("get_output_embeddings", "logits are not"),
    ):
        model = tiny_decoder(torch.float16)
        assert math.isfinite(evaluate(coder, model, contexts, progress=False).ce_loss_score)
        with torch.no_grad():
            getattr(model.hf, layer)().weight.mul_(6e4)
        with pytest.raises(DataError, match=message):
            evaluate(coder, model, contexts)
    model = tiny_decoder(torch.float16)
    with torch.no_grad():
        coder.W_dec.mul_(1e6)  # finite in float32, not at the site
    with pytest.raises(DataError, match=r"cross-entropy of the spliced run.*bfloat16 or float32"):
        evaluate(coder, model, contexts)


def test_a_dictionary_of_another_width_is_refused_everywhere(decoder: LanguageModel, contexts: Tensor):
    narrow = SAE(8, 16, activation=ReLU())
    narrow.bind(SITE, SITE, {})
    with pytest.raises(ShapeError, match=r"d_in is 8, but .* 16 wide; was it trained on another model or site\?"):
        evaluate(narrow, decoder, contexts)
    with pytest.raises(ShapeError, match="d_in is 8, but"):
        evaluate_many({"good": random_sae(), "narrow": narrow}, decoder, contexts)
    with pytest.raises(ShapeError, match=r"needs activations \[rows, 8\]"):
        evaluate(narrow, activations=torch.zeros(4, WIDTH))
