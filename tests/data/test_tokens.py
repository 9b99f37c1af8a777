"""``load_tokens``: tokenising, framing, the split, pretokenised data, and the errors that name the fix."""

from __future__ import annotations

import hashlib
import logging

import datasets
import pytest
import torch
from data_tiny import BOS, word_tokenizer, words

from monosema.core.errors import ConfigError, DataError
from monosema.data import load_tokens
from monosema.data.stdlib import is_heldout_name

TEXTS = [words(*range(4 + i % 5, 12 + i % 7), 4 + i % 27, 4 + i // 27) for i in range(300)]


def context_rows(split):
    return [tuple(row) for row in split.contexts.tolist()]


def test_text_is_tokenised_framed_and_packed():
    tokens = load_tokens([words(4, 5, 6), words(7, 8)], word_tokenizer(), 6, heldout_fraction=0.0)
    assert tokens.train.contexts.tolist() == [[BOS, 4, 5, 6, BOS, 7]]
    assert tokens.train.contexts.dtype == torch.int32
    assert tokens.heldout.contexts.shape == (0, 6)
    assert tokens.train.special_token_ids == {0, 1, 2}, "the unknown token stands for text"
    mask = tokens.train.special_mask(tokens.train.contexts)
    assert mask.tolist() == [[True, False, False, False, True, False]]


def test_encoders_are_framed_by_their_own_tokens():
    tokenizer = word_tokenizer(cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>")
    tokens = load_tokens([words(4, 5), words(6, 7, 8)], tokenizer, 5, heldout_fraction=0.0)
    assert tokens.train.contexts.tolist() == [[0, 4, 5, 1, 1], [0, 6, 7, 8, 1]]
    assert tokens.record["end_context"] == 1


def test_a_tokenizer_without_bos_is_framed_by_eos_and_one_without_any_mark_by_nothing():
    only_eos = load_tokens([words(4, 5, 6)], word_tokenizer(eos_token="</s>"), 3, heldout_fraction=0.0)
    assert only_eos.train.contexts.tolist() == [[1, 4, 5]]
    bare = load_tokens([words(4, 5, 6)], word_tokenizer(unk_token="<unk>"), 3, heldout_fraction=0.0)
    assert bare.train.contexts.tolist() == [[4, 5, 6]]


def test_a_token_that_is_unknown_token_and_frame_in_one_is_special():
    """GPT-2 has one token for beginning, end and unknown."""
    tokenizer = word_tokenizer(bos_token="<s>", eos_token="<s>", unk_token="<s>")
    tokens = load_tokens([words(4, 5, 6)], tokenizer, 3, heldout_fraction=0.0)
    assert tokens.train.special_token_ids == {0}


@pytest.mark.parametrize(("exclude", "expected"), [(False, frozenset()), ([5, 7], frozenset({5, 7}))])
def test_which_tokens_are_special_can_be_said(exclude, expected):
    tokens = load_tokens([words(4, 5, 6)], word_tokenizer(), 3, heldout_fraction=0.0, exclude_special_tokens=exclude)
    assert tokens.train.special_token_ids == expected
    assert tokens.record["exclude_special_tokens"] == (exclude if exclude is False else [5, 7])
    assert tokens.train.special_mask(tokens.train.contexts).tolist() == [[False, False, 5 in expected]]


def test_the_split_is_by_document_disjoint_stable_and_of_the_asked_size():
    tokens = load_tokens(TEXTS, word_tokenizer(), 4, heldout_fraction=0.2)
    again = load_tokens(TEXTS[::-1], word_tokenizer(), 4, heldout_fraction=0.2)
    held = tokens.record["n_heldout_documents"]
    assert held == again.record["n_heldout_documents"], "what is held out does not depend on the order"
    assert held / len(TEXTS) == pytest.approx(0.2, abs=0.07)
    wider = load_tokens(TEXTS, word_tokenizer(), 4, heldout_fraction=0.4)
    text = [words(*(t for t in row if t > 3)) for row in tokens.heldout.contexts.tolist()]
    assert text
    assert wider.record["n_heldout_documents"] > held

    # each document's last two words name it: no document has contexts on both sides
    def named(split):
        found = [t for row in split.contexts.tolist() for t in row]
        marks = [i for i, t in enumerate(found) if t == BOS]
        return {tuple(found[i - 2 : i]) for i in marks if i >= 2 and BOS not in found[i - 2 : i]}

    big = {"heldout_fraction": 0.3, "tokenizer": word_tokenizer(), "context_size": 2000}
    sides = load_tokens(TEXTS, **big)
    assert sides.train.n_contexts == 1
    assert not named(sides.train) & named(sides.heldout)


def test_held_out_modules_are_chosen_by_their_name(tmp_path, monkeypatch):
    from monosema.data import documents
    from monosema.data.stdlib import Module

    modules = [Module(name=f"m{i}", text=words(4 + i % 20, 5, 6)) for i in range(40)]
    monkeypatch.setattr(documents, "stdlib_modules", lambda: modules)
    tokens = load_tokens("stdlib", word_tokenizer(), 4)
    assert tokens.record["heldout_fraction"] == 0.05
    expected = [m.name for m in modules if is_heldout_name(m.name, 0.05)]
    assert tokens.record["n_heldout_documents"] == len(expected) > 0
    assert tokens.record["source"] == "stdlib"


def test_fingerprints_change_when_anything_changes():
    def prints(texts=TEXTS, size=4, **options):
        tokens = load_tokens(texts, word_tokenizer(), size, heldout_fraction=0.2, **options)
        return tokens.train.fingerprint, tokens.heldout.fingerprint

    base = prints()
    assert base == prints()
    assert base[0] != base[1]
    held = next(i for i, text in enumerate(TEXTS) if is_heldout_name(hashlib.sha256(text.encode()).hexdigest(), 0.2))
    without = prints([*TEXTS[:held], *TEXTS[held + 1 :]])
    assert without[0] == base[0], "a held-out document that goes changes the held-out side"
    assert without[1] != base[1]
    assert prints(size=5)[0] != base[0]
    assert prints([*TEXTS[:-1], TEXTS[-1] + " w9"]) != base
    assert prints(max_documents=100)[0] != base[0]


def test_pretokenised_rows_are_taken_as_they_are(caplog):
    rows = [{"input_ids": [BOS, i, i + 1, i + 2]} for i in range(4, 25)]
    dataset = datasets.Dataset.from_list(rows)
    for source in (dataset, dataset.to_iterable_dataset()):
        tokens = load_tokens(source, word_tokenizer(), heldout_fraction=0.3)
        assert tokens.context_size == 4
        assert sorted(context_rows(tokens.train) + context_rows(tokens.heldout)) == [
            tuple(r["input_ids"]) for r in rows
        ]
        assert not set(context_rows(tokens.train)) & set(context_rows(tokens.heldout))
        assert tokens.heldout.n_contexts > 0
    assert load_tokens(dataset, None, heldout_fraction=0.0, max_documents=3).train.n_contexts == 3
    with caplog.at_level(logging.WARNING):
        cut = load_tokens(dataset, None, 3, heldout_fraction=0.0)
    assert cut.train.contexts.tolist() == [row["input_ids"][:3] for row in rows]
    assert "of up to 4 are cut to 3" in caplog.text
    with pytest.raises(DataError, match="has 4 tokens, context_size is 5; use context_size=4"):
        load_tokens(dataset, None, 5)
    ragged = datasets.Dataset.from_list([{"tokens": [1, 2, 3]}, {"tokens": [1, 2]}])
    with pytest.raises(DataError, match="use context_size=2"):
        load_tokens(ragged, None)


def test_a_pretokenised_dataset_on_disk_is_recognised(tmp_path):
    datasets.Dataset.from_list([{"tokens": [0, 5, 6]}] * 2).save_to_disk(str(tmp_path / "saved"))
    tokens = load_tokens(tmp_path / "saved", None, heldout_fraction=0.0)
    assert tokens.train.contexts.tolist() == [[0, 5, 6]] * 2
    assert tokens.record["source"] == str(tmp_path / "saved"), "a path is recorded so that it can be read again"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((["a text"], None, 4), {}, ConfigError, "needs a tokenizer: pass model.tokenizer"),
        ((["a text"], word_tokenizer()), {}, ConfigError, "give context_size"),
        (([" ", "\n"], word_tokenizer(), 4), {}, DataError, "the text is empty"),
        ((["w1 w2"], word_tokenizer(), 9), {}, DataError, "fills no context of 9 tokens; give more text"),
        ((["w1 w2"], word_tokenizer(), 1), {}, ConfigError, "context_size must exceed 1"),
        ((["w1 w2"], word_tokenizer(), 3), {"heldout_fraction": 1.0}, ConfigError, "below 1, got 1.0"),
        ((datasets.Dataset.from_list([{"u": "x"}]), word_tokenizer(), 4), {}, DataError, "name it with column="),
        ((datasets.Dataset.from_dict({"tokens": []}), None), {}, DataError, "dataset is empty"),
        ((datasets.DatasetDict({"a": datasets.Dataset.from_dict({"tokens": [[1]]})}), None), {}, DataError, "split="),
    ],
)
def test_what_cannot_be_loaded_names_the_fix(arguments, options, error, message):
    with pytest.raises(error, match=message):
        load_tokens(*arguments, **options)
