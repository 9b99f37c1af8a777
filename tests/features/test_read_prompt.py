"""``read_prompt``: every number against a hand computation or ``encode`` of what ``capture`` gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from features_tiny import (
    BOS,
    HOSTILE,
    SITE,
    byte_level_tokenizer,
    known_coder,
    known_model,
    random_coder,
    tiny_llama,
)

from monosema.coders import CLT, SAE, Crosscoder, TopK
from monosema.core.errors import ConfigError, DataError
from monosema.features import FeatureStore, read_prompt


def test_numbers_by_hand():
    # the embeddings of tokens 1, 2 and 3 hold (1), (2, 0.5) and (4, 0, -3 → inactive); no median recorded, no outlier
    coder = known_coder()
    coder.metadata["tokens"] = {"exclude_special_tokens": [BOS]}
    reading = read_prompt(known_model(), coder, torch.tensor([0, 1, 2, 3]))
    special, first, second, third = reading.tokens
    assert (special.is_special, special.n_active, special.norm, special.latents) == (True, 0, None, ())
    assert [(each.index, each.activation, each.share) for each in first.latents] == [(0, 1.0, 1.0)]
    assert [(each.index, each.activation, each.share) for each in second.latents] == [(0, 2.0, 1.0), (1, 0.5, 0.25)]
    assert (third.norm, third.n_active, third.is_outlier) == (5.0, 1, False)
    assert read_prompt(known_model(), coder, [2], n_latents=1).tokens[0].latents == second.latents[:1]


def test_latents_are_those_of_encode():
    model, coder = tiny_llama(50), random_coder()
    coder.metadata["tokens"] = {"exclude_special_tokens": False}
    ids = torch.tensor([0, 7, 31, 7, 49, 2])
    dense = coder.encode(model.capture(ids[None], [SITE])[SITE])[0].detach()
    reading = read_prompt(model, coder, ids, n_latents=3)
    for token, row in zip(reading.tokens, dense, strict=True):
        ranked = sorted(row.nonzero().flatten().tolist(), key=lambda index: (-row[index], index))
        assert [each.index for each in token.latents] == ranked[:3]
        assert [each.activation for each in token.latents] == [float(row[index]) for index in ranked[:3]]
        assert [each.share for each in token.latents] == [float(row[index] / row[ranked[0]]) for index in ranked[:3]]
        assert token.n_active == len(ranked) == 6


def test_latents_of_a_cross_layer_transcoder_come_by_layer():
    model = tiny_llama(50)
    reads, writes = ([f"blocks.{i}.{hook}" for i in (0, 1)] for hook in ("mlp.hook_in", "hook_mlp_out"))
    coder = CLT([16, 16], [16, 16], 12, activation=TopK(k=2), dtype="float64")
    coder.bind("+".join(reads), "+".join(writes), {})
    reading = read_prompt(model, coder, [3, 4, 5], n_latents=1)
    captured = model.capture(torch.tensor([[3, 4, 5]]), reads)
    dense = coder.encode(torch.cat([captured[name] for name in reads], -1))[0]
    assert reading.layers == tuple(reads)
    for token, row in zip(reading.tokens, dense, strict=True):
        assert [each.layer for each in token.latents] == [0, 1]
        assert [each.index for each in token.latents] == [int(row[:12].argmax()), 12 + int(row[12:].argmax())]
        assert all(each.share == 1 for each in token.latents)
    assert f"{reads[1]}:" in str(reading)


def test_models_are_given_by_name():
    models = {"a": tiny_llama(50), "b": tiny_llama(50)}
    coder = Crosscoder([16, 16], 24, activation=TopK(k=2), dtype="float64")
    site = "+".join(f"{key}:{SITE}" for key in models)
    coder.bind(site, site, {})
    reading = read_prompt(models, coder, [3, 4])
    assert reading.model == "a: tiny-llama, b: tiny-llama"
    row = coder.encode(
        torch.cat([model.capture(torch.tensor([[3, 4]]), [SITE])[SITE] for model in models.values()], -1)
    )
    assert reading.tokens[1].latents[0].activation == float(row[0, 1].detach().max())


def test_what_begins_a_context_is_put_before_text_as_in_training():
    tokenizer = byte_level_tokenizer(HOSTILE)
    model, coder = tiny_llama(len(tokenizer), tokenizer=tokenizer), random_coder()
    plain = tokenizer.encode("tabs", add_special_tokens=False)

    def ids(**options: object) -> list[int]:
        return [token.token_id for token in read_prompt(model, coder, "tabs", **options).tokens]

    assert ids() == ids(prepend_bos=True) == [BOS, *plain]  # nothing recorded: the tokenizer's BOS
    assert ids(prepend_bos=False) == plain
    coder.metadata["tokens"] = {"begin_context": None}
    assert ids() == plain
    coder.metadata["tokens"] = {"begin_context": 9, "begin_document": BOS}
    assert ids() == [9, BOS, *plain]
    given = [token.token_id for token in read_prompt(model, coder, plain).tokens]
    assert given == plain
    tokenizer.chat_template = "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}{% endfor %}"
    coder.metadata["tokens"] = {"begin_context": BOS}
    chat = [token.token_id for token in read_prompt(model, coder, [{"role": "user", "content": "tabs"}]).tokens]
    assert chat == tokenizer.encode("<|endoftext|>user: tabs", add_special_tokens=False)


def test_tokens_of_outlying_norm_are_marked():
    coder = known_coder()
    coder.metadata |= {"outlier_norm_multiple": 2.0, "median_norms": [["hook_embed", 8, 2.0]]}
    norms_4_and_5 = read_prompt(known_model(), coder, [1, 2, 3]).tokens
    assert [token.is_outlier for token in norms_4_and_5] == [False, False, True]  # 1, √4.25 and 5 beside 2 · 2
    assert not any(t.is_outlier for t in read_prompt(known_model(), coder, [3], outlier_norm_multiple=None).tokens)


def test_features_label_latents(known_store: FeatureStore, tmp_path: Path):
    folder = known_store.save(tmp_path / "features")
    by_store, by_folder = (
        read_prompt(known_model(), known_coder(), [2], features=each) for each in (known_store, folder)
    )
    assert by_store == by_folder
    # latent 0 is strongest on token 3 in both contexts; latent 1 fires on token 2 alone
    assert [each.label for each in by_store.tokens[0].latents] == [("⟨3⟩",), ("⟨2⟩",)]
    assert "⟨3⟩" in str(by_store)
    with pytest.raises(ConfigError, match="4 latents at 'hook_embed', the dictionary 48 latents at"):
        read_prompt(tiny_llama(50), random_coder(), [2], features=known_store)


def test_hostile_text_is_shown_and_never_acts(tmp_path: Path):
    tokenizer = byte_level_tokenizer(HOSTILE)
    model, coder = tiny_llama(len(tokenizer), tokenizer=tokenizer), random_coder()
    for text in HOSTILE:
        reading = read_prompt(model, coder, text[:30])
        page = reading.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
        assert "<script" not in page
        assert "<img" not in page
        assert "\u202e" not in page + str(reading)
        assert "\x1b" not in page + str(reading)
        assert reading._repr_html_() in page
        assert len(str(reading).splitlines()) == 1 + len(reading.tokens)


def test_errors_name_the_fix():
    model, coder = tiny_llama(50), random_coder()
    with pytest.raises(ConfigError, match=r"has no tokenizer.*token ids"):
        read_prompt(model, coder, "text")
    with pytest.raises(DataError, match="the prompt is empty"):
        read_prompt(model, coder, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match=r"65 tokens.*at most 64; shorten the prompt"):
        read_prompt(model, coder, [1] * 65)
    with pytest.raises(DataError, match=r"whole numbers of shape \[T\]"):
        read_prompt(model, coder, torch.zeros(3))
    with pytest.raises(ConfigError, match="n_latents must be at least 1"):
        read_prompt(model, coder, [1], n_latents=0)
    with pytest.raises(ConfigError, match=r"does not say which site it reads.*coder\.bind"):
        read_prompt(model, SAE(16, 48, activation=TopK(k=6)), [1])
