"""Tokenising: order, batches, worker processes and their ends."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
import transformers
from data_tiny import word_tokenizer, words

import monosema as ms
from monosema.core.errors import ConfigError, DataError
from monosema.data import tokenise as module
from monosema.data.config import load_tokens
from monosema.data.file_formats import Document
from monosema.data.tokenise import encode, tokenise
from monosema.data.workers import Workers

DOCUMENTS = [Document(str(i), words(*(4 + (i + j) % 27 for j in range(i % 7 + 1)))) for i in range(40)]


@pytest.mark.parametrize(("n_documents", "n_characters"), [(1, 10**6), (7, 10**6), (1000, 20), (1000, 10**6)])
def test_every_document_gets_its_own_tokens_whatever_the_batches(monkeypatch, n_documents, n_characters):
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", n_documents)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", n_characters)
    found = list(tokenise(DOCUMENTS, word_tokenizer()))
    assert [each.document for each in found] == DOCUMENTS
    assert all(each.tokens.dtype == np.int32 for each in found)
    expected = [[4 + (i + j) % 27 for j in range(i % 7 + 1)] for i in range(40)]
    assert [each.tokens.tolist() for each in found] == expected


def test_no_more_than_a_batch_is_read_ahead(monkeypatch):
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 4)
    read = []

    def counted():
        for document in DOCUMENTS:
            read.append(document)
            yield document

    list(itertools.islice(tokenise(counted(), word_tokenizer()), 5))
    assert len(read) == 8


def test_half_a_character_is_named():
    documents = [Document("a", "w1"), Document("b", "w2 \ud800")]
    with pytest.raises(DataError, match=r"begins 'w2 .*lone surrogate, at character 3"):
        list(tokenise(documents, word_tokenizer()))


def test_a_fast_tokenizer_gives_what_it_gives_when_called_whatever_it_was_called_for_before():
    tokenizer = ms.load_model("builtin").tokenizer
    end = tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    texts = ["def f(x):\n    return x", "", f"one{end}two", "naïve 日本", "a " * 300]
    for split in (False, True):
        tokenizer.split_special_tokens = split
        expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        tokenizer(texts, truncation=True, max_length=3, padding="max_length")  # its backend keeps these
        assert [row.tolist() for row in encode(tokenizer, texts)] == expected
    assert len(expected[4]) > 256


def test_a_tokenizer_with_a_way_of_its_own_is_called_for_every_text():
    class Upper(transformers.PreTrainedTokenizerFast):
        def _encode_plus(self, text, *args, **kwargs):
            return super()._encode_plus([each.upper() for each in text], *args, **kwargs)

    plain = ms.load_model("builtin").tokenizer
    own = Upper(tokenizer_object=plain.backend_tokenizer)
    expected = [row.tolist() for row in encode(plain, ["ONE", "TWO", "THREE"])]
    assert [row.tolist() for row in encode(own, ["one", "two", "three"])] == expected


def test_there_must_be_a_tokenizer_and_a_process():
    with pytest.raises(ConfigError, match=r"text needs a tokenizer: pass model\.tokenizer"):
        tokenise(DOCUMENTS, None)
    with pytest.raises(ConfigError, match="n_processes must be at least 1, got 0"):
        load_tokens(["w1"], word_tokenizer(), 4, n_processes=0)
    with pytest.raises(ConfigError, match=r"cannot be copied to other processes .* use n_processes=1"):
        Workers(lambda texts: texts, 2, encode)


def stops(texts, **options):
    raise RuntimeError("this tokenizer is broken")


def dies(texts, **options):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_worker_processes_give_the_same_tokens_in_the_same_order_and_leave_none_behind(monkeypatch):
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 3)
    tokenizer = transformers.ByT5Tokenizer()  # pure Python
    assert not tokenizer.is_fast
    alone = [each.tokens.tolist() for each in tokenise(DOCUMENTS, tokenizer)]
    with Workers(tokenizer, 2, encode) as workers:
        together = list(tokenise(DOCUMENTS, tokenizer, workers=workers))
    assert [each.document for each in together] == DOCUMENTS
    assert [each.tokens.tolist() for each in together] == alone
    assert multiprocessing.active_children() == []
    texts = [document.text for document in DOCUMENTS]
    one, two = (load_tokens(texts, tokenizer, 16, n_processes=n) for n in (1, 2))
    assert (one.train.fingerprint, one.heldout.fingerprint) == (two.train.fingerprint, two.heldout.fingerprint)
    assert one.record == two.record


@pytest.mark.slow
def test_an_error_in_a_worker_is_raised_once_and_ends_them_all():
    with (
        pytest.raises(RuntimeError, match="this tokenizer is broken"),
        Workers(stops, 2, encode) as workers,
    ):
        list(tokenise(DOCUMENTS, stops, workers=workers))
    assert multiprocessing.active_children() == []


@pytest.mark.fault
def test_a_worker_that_is_killed_is_a_clear_error():
    with (
        pytest.raises(DataError, match="a tokenising process ended before its work did"),
        Workers(dies, 2, encode) as workers,
    ):
        list(tokenise(DOCUMENTS, dies, workers=workers))
    assert multiprocessing.active_children() == []
