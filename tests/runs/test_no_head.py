"""Models that predict no tokens: what can be measured is, and what cannot is said before the first step."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import TEXT, byte_tokenizer
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForSequenceClassification, LlamaModel

import monosema as ms
from monosema.core.errors import ConfigError, UserError

SITE = "blocks.1.hook_resid_post"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = LlamaConfig(vocab_size=257, max_position_embeddings=64, pad_token_id=0, **SMALL)
BERT = BertConfig(vocab_size=257, max_position_embeddings=64, **SMALL)
MODELS = {"reward": (LlamaForSequenceClassification, LLAMA), "bare": (LlamaModel, LLAMA), "encoder": (BertModel, BERT)}


def headless(kind: str) -> ms.LanguageModel:
    make, config = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ms.load_model(make(config), tokenizer=byte_tokenizer())


def stream(model: ms.LanguageModel, site: str = SITE) -> ms.ActivationStream:
    texts = [TEXT[i : i + 300] for i in range(0, 4500, 300)]
    return ms.ActivationStream(model, ms.load_tokens(texts, model.tokenizer, 32, heldout_fraction=0.2), site, 64)


def train(source: ms.ActivationStream, out: Path, **options: Any) -> ms.TrainingResult:
    config = ms.TrainingConfig(**{"tokens": 640, "lr": 0.03, **options})
    coder = ms.SAE(source.d_in, 32, activation=ms.TopK(k=4))
    return ms.train(coder, source, config, out=out, progress=False)


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_has_a_report_without_losses_and_says_so_beforehand(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = stream(headless(kind))
    with caplog.at_level(logging.WARNING):
        result = train(source, tmp_path / "run", eval_every=10)
    assert (tmp_path / "run" / "report.json").exists()
    assert result.report is not None
    assert result.report.fve > 0
    assert (result.report.l0, result.report.ce_clean, result.report.kl) == (4.0, None, None)
    named = "has no language-model head" if kind != "encoder" else "no (language-model head|mask token)"
    reason = next(line for line in caplog.messages if "have no cross-entropy or KL" in line)
    assert re.search(named, reason)
    assert any("no cross-entropy or KL" in note for note in result.report.notes)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "heldout/fve" in lines
    assert "heldout/kl" not in lines


def test_what_needs_losses_is_refused_before_the_first_step(tmp_path: Path) -> None:
    source = stream(headless("bare"))
    with pytest.raises(ConfigError, match=r"keep_best='heldout/kl' is not measured on this source; it has heldout/fve"):
        train(source, tmp_path / "run", eval_every=5, keep_best="heldout/kl")
    with pytest.raises(ConfigError, match=r"model_loss.* needs losses: LlamaModel has no language-model head"):
        train(source, tmp_path / "run", revive=ms.Resample(every_tokens=128, by="model_loss"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"no language-model head .*evaluate\(\.\.\., losses=False\)"):
        source.model(source.first_contexts().ids[:1].long())


def test_a_site_that_cannot_be_written_gives_a_report_without_losses(
    tmp_path: Path, model: ms.LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    sites = [name for name in model.hook_names if not model.site(name).writable]
    assert sites
    with caplog.at_level(logging.WARNING):
        result = train(stream(model, sites[0]), tmp_path / "run")
    assert result.report is not None
    assert result.report.ce_clean is None
    assert f"{sites[0]!r} can be read but not written" in caplog.text
