"""Words in prompts of a byte-level model: one token a byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_language import save_tiny_model

from monosema.core.errors import ConfigError, DataError, UnknownNameError
from monosema.evaluation.benchmarks.words import capture_words, make_prompt
from monosema.models import LanguageModel, load_model

SITE = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_model(str(save_tiny_model(folder)))


def test_the_position_is_that_of_the_words_last_token(model: LanguageModel):
    prompt = make_prompt(model, "a {word}!", "fox")
    assert prompt.ids[0] == 0
    assert len(prompt.ids) == 7
    assert prompt.position == 5
    assert model.tokenizer.decode([prompt.ids[5]]) == "x"
    without = make_prompt(model, "a {word}!", "fox", prepend_bos=False)
    assert (without.ids, without.position) == (prompt.ids[1:], 4)


def test_rows_are_the_sites_at_those_positions(model: LanguageModel):
    words = ["fox", "dog", "lazy", "quick", "cat"]
    rows = capture_words(model, SITE, words, template="the {word} is", batch_size=2)
    for word, row in zip(words, rows, strict=True):
        prompt = make_prompt(model, "the {word} is", word)
        alone = model.capture(torch.tensor([prompt.ids]), [SITE])[SITE][0, prompt.position]
        assert torch.allclose(row, alone, atol=1e-6)


def test_bad_input_is_refused(model: LanguageModel):
    with pytest.raises(ConfigError, match="exactly once"):
        capture_words(model, SITE, ["fox"], template="no slot")
    with pytest.raises(DataError, match="no words"):
        capture_words(model, SITE, [])
    with pytest.raises(DataError, match="empty"):
        capture_words(model, SITE, ["fox", " "])
    with pytest.raises(DataError, match="more than the 64"):
        capture_words(model, SITE, ["fox" * 30])
    with pytest.raises(ConfigError, match="batch_size"):
        capture_words(model, SITE, ["fox"], batch_size=0)
    with pytest.raises(UnknownNameError, match="hook_resid_pre"):
        capture_words(model, "blocks.1.hook_resid_per", ["fox"])
