"""A dictionary of processed weights, or of other weights, is noted by everything that measures it on a plain model."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny_language import TEXT, byte_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import monosema as ms
from monosema.compat.saebench import adapter
from monosema.evaluation import evaluate_crosscoder, evaluate_replacement
from monosema.evaluation.benchmarks.config import AblationConfig, ProbingConfig
from monosema.evaluation.benchmarks.probing import probe_texts
from monosema.evaluation.benchmarks.texts import text_rows, word_rows
from monosema.evaluation.benchmarks.tpp import targeted_perturbation
from monosema.evaluation.loss_recovered import loss_recovered

D, SITE, OUT = 8, "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"
TEXTS = [f"{word} {number}" for number in range(24) for word in ("yes", "nooo")]
LABELS = [text.split()[0] for text in TEXTS]


@pytest.fixture(scope="module")
def model() -> ms.LanguageModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 257, "n_embd": D, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return ms.load_model(
        GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)), tokenizer=byte_tokenizer()
    )


@pytest.fixture(scope="module")
def tokens(model: ms.LanguageModel) -> ms.Tokens:
    return ms.load_tokens(
        [TEXT[start : start + 1000] for start in range(0, 6000, 1000)], model.tokenizer, 32, heldout_fraction=0.4
    )


def prepared(coder: ms.SparseCoder, metadata: dict[str, Any]) -> ms.SparseCoder:
    coder.metadata.update(metadata)
    return coder.requires_grad_(False)


def sae(metadata: dict[str, Any]) -> ms.SparseCoder:
    return prepared(ms.SAE(D, 16, activation=ms.ReLU(), hook_name=SITE), metadata)


def transcoder(metadata: dict[str, Any]) -> ms.SparseCoder:
    made = ms.Transcoder(D, D, 16, activation=ms.ReLU())
    made.bind("blocks.0.mlp.hook_in", OUT, {})
    return prepared(made, metadata)


def crosscoder(metadata: dict[str, Any]) -> ms.SparseCoder:
    made = ms.Crosscoder([D, D], d_sae=16, activation=ms.ReLU())
    made.bind(f"{SITE}+{OUT}", f"{SITE}+{OUT}", {})
    return prepared(made, metadata)


def probed(model: ms.LanguageModel, metadata: dict[str, Any]) -> tuple[str, ...]:
    config = ProbingConfig(ks=(1,), min_examples=1)
    return probe_texts(sae(metadata), model, TEXTS, LABELS, config, progress=False).notes


def perturbed(model: ms.LanguageModel, metadata: dict[str, Any]) -> tuple[str, ...]:
    rows = text_rows(sae(metadata), model, TEXTS, progress=False)
    return targeted_perturbation(sae(metadata), rows, LABELS, AblationConfig(n_latents=(1,))).notes


MEASURED = {
    "evaluate": lambda model, tokens, told: ms.evaluate(
        sae(told), model, tokens, n_tokens=320, progress=False
    ).notes,
    "evaluate_many": lambda model, tokens, told: ms.evaluate_many(
        {"a": sae({}), "b": sae(told)}, model, tokens, n_tokens=320, progress=False
    )["b"].notes,
    "evaluate_replacement": lambda model, tokens, told: evaluate_replacement(
        transcoder(told), model, tokens, n_tokens=320, progress=False
    ).notes,
    "evaluate_crosscoder": lambda model, tokens, told: evaluate_crosscoder(
        crosscoder(told), model, tokens, n_tokens=320, progress=False
    ).notes,
    "features": lambda model, tokens, told: ms.collect_features(
        sae(told), model, tokens, n_tokens=320, progress=False
    ).provenance.notes,
    "probing": lambda model, tokens, told: probed(model, told),
    "tpp": lambda model, tokens, told: perturbed(model, told),
    "words": lambda model, tokens, told: word_rows(sae(told), model, ["yes", "no"], progress=False).notes,
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_whatever_measures_says_so(name: str, model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    processed = {"site_transform": {"centered": True}}
    other = {"model": {**model.record(), "fingerprint": "0" * 16}}
    (note,) = [each for each in MEASURED[name](model, tokens, processed) if "processed weights" in each]
    assert "was centered over its width" in note
    assert [each for each in MEASURED[name](model, tokens, other) if "trained on another model" in each]
    for silent in ({}, {"model": model.record()}):
        notes = MEASURED[name](model, tokens, silent)
        assert not any("processed weights" in each or "another model" in each for each in notes)


def test_figures_without_a_report_are_logged(model: ms.LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="monosema"):
        loss_recovered("the quick brown fox", model, SITE, sae({}))
        assert caplog.text == ""
        loss_recovered("the quick brown fox", model, SITE, sae({"site_transform": {"centered": True}}))
    assert "was centered over its width" in caplog.text


def test_the_adapter_passes_the_processing_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="monosema"):
        plain = adapter(sae({}), model_name="gpt2")
        assert (plain.cfg.model_from_pretrained_kwargs, caplog.text) == ({}, "")
        processed = adapter(sae({"site_transform": {"centered": True, "norms_folded": True}}), model_name="gpt2")
    assert processed.cfg.model_from_pretrained_kwargs == {"center_writing_weights": True, "fold_ln": True}
    assert "trained on processed weights" in caplog.text
