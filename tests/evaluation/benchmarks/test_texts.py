"""Words in prompts of a byte-level model: one token a byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_language import byte_tokenizer, save_tiny_model

from monosema.coders import SAE, ReLU, SparseCoder
from monosema.core.errors import ConfigError, DataError, ShapeError, UnknownNameError
from monosema.evaluation.benchmarks import text_rows, word_rows
from monosema.evaluation.benchmarks.texts import Framing, make_prompt, rows_at
from monosema.models import LanguageModel, load_model

SITE = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_model(str(save_tiny_model(folder)), dtype="float64")  # so that the order of sums does not show


def test_the_position_is_that_of_the_words_last_token(model: LanguageModel):
    prompt = make_prompt(model, "a {word}!", "fox")
    assert prompt.ids[0] == 0
    assert len(prompt.ids) == 7
    assert prompt.position == 5
    assert model.tokenizer.decode([prompt.ids[5]]) == "x"


def coder(width: int = 16, site: str = SITE) -> SparseCoder:
    sae = SAE(width, 12, activation=ReLU(), dtype="float64")
    sae.bind(site, site, {})
    return sae


def test_rows_of_words_are_those_at_their_last_tokens(model: LanguageModel):
    words, sae = ["fox", "dog", "lazy", "quick", "fox"], coder()
    rows = word_rows(sae, model, words, template="the {word} is", progress=False)
    assert rows.groups_N.tolist() == [0, 1, 2, 3, 0]
    for number, word in enumerate(words):
        prompt = make_prompt(model, "the {word} is", word)
        alone = model.capture(torch.tensor([prompt.ids]), [SITE])[SITE][0, prompt.position]
        assert torch.allclose(rows.x_ND[number], alone, atol=1e-6)
        assert torch.allclose(rows.latents.to_dense()[number], sae.encode(alone).detach(), atol=1e-6)


def test_rows_of_texts_are_means_of_each_alone(model: LanguageModel):
    """Of latents, too: not the latents of the mean activation."""
    texts, sae = ["a short one", "another that is longer", "!", "a short one"], coder()
    rows = text_rows(sae, model, texts, context_size=16, progress=False)
    assert rows.groups_N.tolist() == [0, 1, 2, 0]
    for number, text in enumerate(texts):
        ids = [0, *model.tokenizer(text)["input_ids"]][:16]
        values = model.capture(torch.tensor([ids]), [SITE])[SITE][0, 1:]  # BOS counts in no mean
        torch.testing.assert_close(rows.x_ND[number], values.mean(0))
        torch.testing.assert_close(rows.latents.to_dense()[number], sae.encode(values).mean(0).detach())


def test_rows_at_chosen_positions(model: LanguageModel):
    sae, framing = coder(), Framing(model, 24)
    assert framing.room == 23
    contexts = [framing.around(model.tokenizer(text)["input_ids"]) for text in ("a short one", "longer than that", "!")]
    picked = [torch.tensor([1, 4]), torch.tensor([], dtype=torch.int64), torch.tensor([1])]
    rows = rows_at(sae, model, contexts, picked, False)
    alone = [model.capture(torch.tensor([context]), [SITE])[SITE][0] for context in contexts]
    expected = torch.cat([alone[0][[1, 4]], alone[2][[1]]])
    torch.testing.assert_close(rows.x_ND, expected)
    torch.testing.assert_close(rows.latents.to_dense(), sae.encode(expected).detach())


def test_an_encoders_text_stands_between_its_own_tokens(model: LanguageModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "<|endoftext|>", "sep_token": "z"})
    framed = LanguageModel(model.hf, tokenizer, name="framed")
    framing = Framing(framed, 24)
    assert (framing.room, framing.n_before) == (22, 1)
    assert framing.around([7, 8]) == [0, 7, 8, tokenizer.sep_token_id]
    prompt = make_prompt(framed, "{word}", "ab")
    assert (len(prompt.ids), prompt.position, prompt.ids[-1]) == (4, 2, tokenizer.sep_token_id)


def test_bad_input_is_refused(model: LanguageModel):
    sae = coder()
    with pytest.raises(ConfigError, match="exactly once"):
        word_rows(sae, model, ["fox"], template="no slot")
    with pytest.raises(DataError, match="no words"):
        word_rows(sae, model, [])
    with pytest.raises(DataError, match="empty"):
        word_rows(sae, model, ["fox", " "])
    with pytest.raises(DataError, match="more than the 63"):
        word_rows(sae, model, ["fox" * 30])
    with pytest.raises(UnknownNameError, match="hook_resid_pre"):
        word_rows(coder(site="blocks.1.hook_resid_per"), model, ["fox"])
    with pytest.raises(ShapeError, match="d_in is 17"):
        word_rows(coder(17), model, ["fox"])
    with pytest.raises(DataError, match="no texts"):
        text_rows(sae, model, [])
    with pytest.raises(DataError, match=r"text 1 .* has no token that is not special"):
        text_rows(sae, model, ["fox", ""])
    with pytest.raises(ConfigError, match="has no tokenizer"):
        text_rows(sae, LanguageModel(model.hf, None, name="mute"), ["fox"])
