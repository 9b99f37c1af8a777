"""An encoder goes the whole way a decoder goes: text, training, evaluation, features, page."""

from pathlib import Path

import pytest
import torch
from tiny_language import TEXT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import monosema as ms

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def encoder() -> ms.LanguageModel:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        clean_up_tokenization_spaces=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
        hf = BertForMaskedLM(config).eval()
    return ms.load_model(hf, tokenizer=fast)


def test_an_encoder_trains_evaluates_and_shows_its_features(encoder: ms.LanguageModel, tmp_path: Path) -> None:
    texts = [TEXT[i : i + 700] for i in range(0, 70_000, 700)]
    tokens = ms.load_tokens(texts, encoder.tokenizer, 32, heldout_fraction=0.2)
    assert bool((tokens.train.contexts[:, 0] == 2).all())
    assert bool((tokens.train.contexts[:, -1] == 3).all())
    stream = ms.ActivationStream(encoder, tokens, "blocks.1.hook_resid_post", batch_size=100)
    coder = ms.SAE(16, 48, activation=ms.TopK(k=4))
    result = ms.train(coder, stream, ms.TrainingConfig(tokens=5000), out=tmp_path / "run")
    report = result.report
    assert report is not None
    assert report.fve > 0.2
    assert report.ce_clean is not None
    assert report.n_special_positions is not None
    assert report.n_special_positions > 0
    store = ms.collect_features(result.coder, encoder, tokens, n_tokens=2000, contexts_per_latent=3)
    store.dashboard(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    for feature in store:
        for context in feature.contexts:
            assert float(context.values[0]) == float(context.values[-1]) == 0.0  # [CLS] and [SEP]
