"""Rows of token ids: whole numbers only, and what a mask leaves out is padding."""

from __future__ import annotations

import logging

import datasets
import numpy as np
import pytest
import torch
from data_tiny import BOS, SITES, word_tokenizer, words

from monosema.core.errors import DataError
from monosema.data import ActivationStream, Packing, load_tokens, pretokenize

PAD = 4  # a word, so that only the mask tells padding from text


def load(table: dict[str, list], size: int | None = None, *, streamed: bool = False, tokenizer=None, **options):
    dataset = datasets.Dataset.from_dict(table)
    source = dataset.to_iterable_dataset() if streamed else dataset
    return load_tokens(source, tokenizer or word_tokenizer(), size, **{"heldout_fraction": 0.0, **options})


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", [int, bool])
def test_what_the_mask_leaves_out_is_padding(streamed, kind):
    ids = [[BOS, 5, 6, 7, PAD, PAD], [PAD, PAD, BOS, 8, 9, 10], [BOS, 5, PAD, 7, 8, 9]]
    masks = [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1] * 6]
    masks = [[kind(each) for each in row] for row in masks]
    train = load({"input_ids": ids, "attention_mask": masks}, streamed=streamed).train
    assert train.contexts.tolist() == [[BOS, 5, 6, 7, 2, 2], [BOS, 8, 9, 10, 2, 2], [BOS, 5, PAD, 7, 8, 9]]
    assert train.documents.tolist() == [[0, 0, 0, 0, -1, -1], [0, 0, 0, 0, -1, -1], [0] * 6]
    assert train.row_mask().tolist() == [[False, *[True] * 3, False, False]] * 2 + [[False, *[True] * 5]]
    assert train.n_tokens == 14


def test_padding_is_not_served_attended_to_or_evaluated(model):
    texts = [[BOS, *(5 + (i * 7 + k * k) % 20 for k in range(5))] for i in range(12)]
    padded = {"input_ids": [[PAD, PAD, *text] for text in texts], "attention_mask": [[0, 0, *[1] * 6]] * 12}
    plain = load({"input_ids": texts})
    tokens = load(padded)
    served = [
        torch.cat([*ActivationStream(model, each, SITES[0], 12, chunk_contexts=12)]).double().sum(0)
        for each in (plain, tokens)
    ]
    assert torch.allclose(*served, atol=1e-4), "the rows of the text alone"
    held = load(padded, heldout_fraction=0.5).heldout
    assert not bool(held.text_mask()[:, 6:].any())


def test_a_mask_of_ones_changes_nothing():
    ids = [[BOS, 5 + i, 6] for i in range(9)]
    plain, masked = load({"input_ids": ids}), load({"input_ids": ids, "attention_mask": [[1] * 3] * 9})
    assert masked.train.documents is None
    assert masked.train.fingerprint == plain.train.fingerprint


def test_documents_are_kept_apart_in_padded_rows_too():
    table = {"input_ids": [[BOS, 5, BOS, 6, PAD, BOS]], "attention_mask": [[1, 1, 1, 1, 0, 0]]}
    assert load(table, attend_across_documents=False).train.documents.tolist() == [[0, 0, 1, 1, -1, -1]]


def test_rows_of_padding_alone_are_left_out_and_counted(caplog):
    table = {"input_ids": [[5, 6], [PAD, PAD], [7, 8]], "attention_mask": [[1, 1], [0, 0], [1, 1]]}
    with caplog.at_level(logging.WARNING):
        assert load(table).train.contexts.tolist() == [[5, 6], [7, 8]]
    assert "1 pretokenised rows hold nothing but padding" in caplog.text
    with pytest.raises(DataError, match="every row of the pretokenised dataset is padding"):
        load({"input_ids": [[5, 6]], "attention_mask": [[0, 0]]})


def test_padding_may_hold_any_number():
    table = {"input_ids": [[BOS, 5, -100, 999]], "attention_mask": [[1, 1, 0, 0]]}
    assert load(table).train.contexts.tolist() == [[BOS, 5, 2, 2]]


def test_the_shards_of_a_pretokenized_folder_keep_their_padding_as_a_dataset(tmp_path):
    texts = [words(*range(5, 8 + i % 4)) for i in range(20)]
    options = {"heldout_fraction": 0.2, "packing": Packing(mode="windows"), "progress": False}
    made = pretokenize(texts, word_tokenizer(), 6, tmp_path, **options)
    rows = load_tokens(datasets.load_from_disk(str(tmp_path))["train"], word_tokenizer(), heldout_fraction=0.0).train
    assert torch.equal(rows.contexts, made.train.contexts[:])
    assert torch.equal(rows.documents, made.train.documents[:])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 2], [2**32 + 5, 6]], r"'input_ids', row 1: .*token id 4294967301, the tokenizer's are 0 to 30"),
        ([[1, 2], [2**62, 6]], r"row 1: .*token id 4611686018427387904"),
        ([[1, 2], [3, -1]], r"row 1: .*token id -1, the tokenizer's are 0 to 30"),
        ([[1, 2], [3, 31]], r"row 1: .*token id 31, the tokenizer's are 0 to 30.*made by another one"),
        ([[1.0, 2.0]], r"'input_ids', row 0: expected whole numbers, got the float '1.0'"),
        ([["5", "6"]], r"'input_ids', row 0: expected whole numbers, got the str '5'"),
        ([[True, False]], r"'input_ids', row 0: expected whole numbers, got the bool 'True'"),
        ([[1, 2], [3, None]], r"row 1: expected whole numbers, got the NoneType 'None'"),
        ([[1, 2], None], r"row 1: expected a list of token ids, got the NoneType"),
        (["text", "more"], r"row 0: expected a list of token ids, got the str 'text'"),
        ([[[1, 2]], [[3, 4]]], r"row 0: expected whole numbers, got the list '\[1, 2\]'"),
        ([[], []], r"contexts of 0 tokens hold nothing"),
    ],
)
def test_what_is_no_row_of_ids_is_refused_by_column_row_and_value(rows, message, streamed):
    with pytest.raises(DataError, match=message):
        load({"input_ids": rows}, streamed=streamed)


def test_without_a_tokenizer_ids_still_fit_into_32_bits():
    for value in (2**31, 2**32, -1):
        with pytest.raises(DataError, match=rf"row 0: .*token id {value}, token ids are 0 to 2147483647"):
            load_tokens(datasets.Dataset.from_dict({"input_ids": [[1, value]]}), None)
    rows = datasets.Dataset.from_dict({"input_ids": np.array([[1, 2**64 - 1]], dtype=np.uint64)})
    with pytest.raises(DataError, match="18446744073709551615 is no token id"):
        load_tokens(rows, None)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([1, 0, 1, 1], "row 0: position 1 is left out between two tokens, which no model can skip"),
        ([1, 1, 2, 2], "row 0: expected 0 for padding and 1 for text, got 2"),
        ([1, 1, 1], "row 0: 3 values for 4 tokens"),
        ([1.0, 1.0, 1.0, 0.0], "row 0: expected whole numbers, got the float '1.0'"),
    ],
)
def test_a_mask_that_is_none_is_refused_by_name(mask, message, streamed):
    with pytest.raises(DataError, match=rf"column 'attention_mask', {message}"):
        load({"input_ids": [[4, 5, 6, 7]], "attention_mask": [mask]}, streamed=streamed)


def test_rows_of_ids_in_records_name_the_dataset_to_make():
    with pytest.raises(DataError, match=r"holds a list, expected text; token ids are read from .*Dataset\.from_list"):
        load_tokens([{"input_ids": [1, 2]}], word_tokenizer(), 2, column="input_ids")
