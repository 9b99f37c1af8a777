"""Packing against SAELens' rules, written anew from their description, and against contexts worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monosema.core.errors import ConfigError
from monosema.data.packing import Packer, PackingRule, document_numbers, joined, pack, pack_blocks
from monosema.data.packing_config import PackingMode

Ids = Sequence[int]
PAD = 99


def saelens_pack(
    documents: Sequence[Ids], size: int, begin: int | None, separator: int | None, begin_document: int | None = None
) -> list[list[int]]:
    """SAELens 6.54's ``concat_and_batch_sequences``: plain lists, no cleverness."""
    finished: list[list[int]] = []
    batch: list[int] | None = None
    for document in documents:
        offset, at_start = 0, True
        while offset < len(document):
            first, prefix = document[offset], []
            if at_start and begin_document is not None and first != begin_document:
                prefix, first = [begin_document], begin_document
            has_begin = bool(prefix)
            filled = [] if batch is None else batch
            mark = begin if batch is None else separator
            if mark is not None and first != mark:
                prefix = [mark, *prefix]
            room = max(size - len(filled), 0)
            needed = max(room - len(prefix), 0)
            batch = filled + prefix[:room] + list(document[offset : offset + needed])
            offset += needed
            at_start = has_begin and len(prefix) > room
            if len(batch) == size:
                finished.append(batch)
                batch = None
    return finished


def packed(
    documents: Sequence[Ids],
    size: int,
    begin: int | None = None,
    separator: int | None = None,
    end: int | None = None,
    begin_document: int | None = None,
    mode: PackingMode = "packed",
) -> list[list[int]]:
    rule = PackingRule(
        context_size=size,
        begin_context=begin,
        separator=separator,
        end_context=end,
        begin_document=begin_document,
        mode=mode,
        padding=PAD,
    )
    return pack([np.array(ids, dtype=np.int64) for ids in documents], rule).tolist()


marks = st.sampled_from([None, 0, 1])
texts = st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=8)


@settings(max_examples=200, deadline=None)
@given(documents=texts, size=st.integers(2, 7), begin=marks, separator=marks, begin_document=marks)
@example([[2, 3, 2], [3, 3, 3, 3]], 4, None, 0, None)  # the separator is the last that fits
@example([[0, 2], [0, 3, 2], [0]], 3, 0, 0, None)  # documents that bring their mark
@example([[2] * 9, [1], [0]], 2, 0, 1, None)  # tiny contexts
@example([[2, 3, 2], [3, 3]], 4, None, 0, 1)  # the separator fits, the document's begin token does not
def test_packing_equals_saelens_rules(documents, size, begin, separator, begin_document):
    found = packed(documents, size, begin, separator, None, begin_document)
    assert found == saelens_pack(documents, size, begin, separator, begin_document)


@settings(max_examples=100, deadline=None)
@given(documents=texts, size=st.integers(1, 7))
def test_without_marks_packing_only_cuts_the_concatenation(documents, size):
    stream = [token for ids in documents for token in ids]
    expected = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    assert packed(documents, size, None, None) == expected


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.lists(st.integers(2, 4), max_size=9), max_size=8), size=st.integers(2, 7))
def test_no_token_is_lost_or_repeated_but_the_tail(documents, size):
    text = [token for row in packed(documents, size, 0, 0) for token in row if token != 0]
    stream = [token for ids in documents for token in ids]
    assert text == stream[: len(text)]
    assert len(stream) - len(text) < size


@pytest.mark.parametrize(
    ("documents", "size", "expected"),
    [
        ([[5, 6, 7, 8, 9]], 3, [[0, 5, 6], [0, 7, 8]]),  # runs over; the tail [0, 9] is dropped
        ([[5, 6], [7, 8]], 6, [[0, 5, 6, 0, 7, 8]]),  # parted by one mark
        ([[0, 5], [0, 6]], 4, [[0, 5, 0, 6]]),  # a mark that is there is not written twice
        ([[5, 6], [7, 8, 9]], 4, [[0, 5, 6, 0], [0, 7, 8, 9]]),  # the mark fits last, the document opens the next
        ([[5, 6], [], [7]], 5, [[0, 5, 6, 0, 7]]),  # an empty document leaves nothing
        ([[5]], 3, []),
        ([], 3, []),
    ],
)
def test_contexts_by_hand(documents, size, expected):
    assert packed(documents, size, 0, 0) == expected


def test_encoders_get_their_frame_in_every_context():
    assert packed([[5, 6, 7], [8, 9]], 5, 1, 2, 2) == [[1, 5, 6, 7, 2]]
    assert packed([[5], [6], [7, 8]], 5, 1, 2, 2) == [[1, 5, 2, 6, 2]]
    assert packed([[5, 6, 7, 8, 9, 5]], 5, 1, 2, 2) == [[1, 5, 6, 7, 2], [1, 8, 9, 5, 2]]


def test_packed_contexts_are_int32_of_the_asked_width_even_when_there_are_none():
    rule = PackingRule(context_size=4, begin_context=0, separator=0)
    full, empty = pack([np.arange(1, 9)], rule), pack([], rule)
    assert (full.dtype, full.shape) == (np.dtype(np.int32), (2, 4))
    assert (empty.dtype, empty.shape) == (np.dtype(np.int32), (0, 4))


@pytest.mark.parametrize(("size", "begin", "end"), [(1, 0, None), (2, 0, 1), (0, None, None)])
def test_a_context_without_room_for_text_is_refused(size, begin, end):
    with pytest.raises(ConfigError, match="context_size must exceed"):
        PackingRule(context_size=size, begin_context=begin, separator=begin, end_context=end)


@pytest.mark.parametrize(
    ("documents", "size", "marks", "expected"),
    [  # marks: begin_context, separator, begin_document
        ([[5, 6, 7], [8]], 4, (0, 1, 2), [[0, 2, 5, 6], [0, 7, 1, 2]]),  # all three; the rest of the tail is dropped
        ([[5, 6], [8, 9]], 8, (0, 0, 0), []),  # too little for one context
        ([[5, 6], [8, 9]], 6, (0, 0, 0), [[0, 5, 6, 0, 8, 9]]),  # the same token three times is written once
        ([[5, 6], [8, 9]], 7, (0, 1, 0), [[0, 5, 6, 1, 0, 8, 9]]),  # EOS, then BOS
        ([[2, 5], [2, 6]], 6, (0, 1, 2), [[0, 2, 5, 1, 2, 6]]),  # documents that bring their begin token
        ([[5, 6], [8, 9]], 4, (0, 1, 2), [[0, 2, 5, 6], [0, 2, 8, 9]]),  # a context that ends with its document
        ([[5], [8, 9]], 4, (None, 1, 2), [[2, 5, 1, 2]]),  # both marks fit, the text goes on elsewhere
        ([[5, 6], [8, 9]], 4, (None, 1, 2), [[2, 5, 6, 1]]),  # one fits: the other opens the next
        ([[5, 6], [8, 9, 7]], 4, (None, 1, 2), [[2, 5, 6, 1], [2, 8, 9, 7]]),
        ([[5, 6], [8, 9]], 2, (None, None, None), [[5, 6], [8, 9]]),
    ],
)
def test_packed_contexts_with_three_marks_by_hand(documents, size, marks, expected):
    assert packed(documents, size, marks[0], marks[1], None, marks[2]) == expected


@pytest.mark.parametrize(
    ("mode", "documents", "size", "marks", "expected"),
    [  # marks: begin_context, end_context, begin_document
        ("one_document", [[5, 6, 7, 8], [9, 9], [5, 6]], 3, (0, None, None), [[0, 5, 6], [0, 9, 9], [0, 5, 6]]),
        ("one_document", [[5, 6, 7], [9, 9], [0, 6]], 3, (None, None, None), [[5, 6, 7]]),
        ("one_document", [[5, 6], [9], [0, 6], [0, 5, 6]], 3, (0, None, None), [[0, 5, 6], [0, 5, 6]]),
        ("one_document", [[5, 6, 7], [5, 6]], 3, (0, None, 1), [[1, 5, 6], [1, 5, 6]]),  # as SAELens: one for both
        ("truncate", [[5, 6, 7, 8], [9], []], 3, (0, None, None), [[0, 5, 6], [0, 9, PAD]]),
        ("truncate", [[0, 5], [6, 7, 8]], 4, (0, 1, None), [[0, 5, 1, PAD], [0, 6, 7, 1]]),
        ("truncate", [[5, 6, 7, 8]], 4, (0, None, 2), [[0, 2, 5, 6]]),
        ("windows", [[5, 6, 7, 8, 9], [4]], 3, (None, None, None), [[5, 6, 7], [8, 9, PAD], [4, PAD, PAD]]),
        ("windows", [[5, 6, 7], [4]], 3, (0, None, None), [[0, 5, 6], [0, 7, PAD], [0, 4, PAD]]),
        ("windows", [[5, 6, 7], [4]], 3, (None, None, 0), [[0, 5, 6], [7, PAD, PAD], [0, 4, PAD]]),
        ("windows", [[5, 6, 7], [4]], 4, (0, 1, None), [[0, 5, 6, 1], [0, 7, 1, PAD], [0, 4, 1, PAD]]),
        ("windows", [[5, 6, 7, 8]], 2, (None, None, None), [[5, 6], [7, 8]]),  # no window of padding alone
    ],
)
def test_contexts_of_one_document_by_hand(mode, documents, size, marks, expected):
    assert packed(documents, size, marks[0], None, marks[1], marks[2], mode) == expected


def test_each_position_knows_its_document():
    """What is put before a document belongs to it; a document that goes on is the first of its context."""
    rule = PackingRule(context_size=6, begin_context=0, separator=1, begin_document=2)
    block = next(pack_blocks([np.array(ids) for ids in ([5], [6, 7, 8], [9, 9, 9, 9])], rule))
    assert block.ids.tolist() == [[0, 2, 5, 1, 2, 6], [0, 7, 8, 1, 2, 9]]
    assert block.documents.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    windows = PackingRule(context_size=4, begin_context=0, separator=None, end_context=3, mode="windows", padding=3)
    block = next(pack_blocks([np.array([5, 6, 7])], windows))
    assert block.ids.tolist() == [[0, 5, 6, 3], [0, 7, 3, 3]]
    assert block.documents.tolist() == [[0, 0, 0, 0], [0, 0, 0, -1]], "padding is known even where it equals a mark"


def test_documents_of_rows_that_are_packed_already():
    rows = np.array([[0, 5, 0, 0, 6], [5, 6, 7, 0, 8]])
    assert document_numbers(rows, 0).tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert document_numbers(rows, None).tolist() == [[0] * 5] * 2


@settings(max_examples=25, deadline=None)
@given(documents=texts, size=st.integers(2, 5), block=st.integers(1, 3))
def test_blocks_are_the_whole_cut_into_pieces_and_read_no_further_than_they_need(documents, size, block):
    read = []

    def source():
        for ids in documents:
            read.append(ids)
            yield np.array(ids, dtype=np.int64)

    for mode in ("packed", "windows", "truncate", "one_document"):
        rule = PackingRule(context_size=size, begin_context=0, separator=0, mode=mode, padding=PAD)
        read.clear()
        blocks = pack_blocks(source(), rule, block)
        first = next(blocks, None)
        if first is not None and len(first.ids) == block:
            assert len(pack([np.array(ids) for ids in read[:-1]], rule)) < block
        blocks = [] if first is None else [first, *blocks]
        assert all(len(each.ids) == block for each in blocks[:-1])
        joined = [row for each in blocks for row in each.ids.tolist()]
        assert joined == pack([np.array(ids) for ids in documents], rule).tolist()


def test_of_long_documents_the_first_tokens():
    rule = PackingRule(context_size=4, begin_context=0, separator=0, document_tokens=2)
    assert pack([np.array([5, 6, 7]), np.array([8, 9])], rule).tolist() == [[0, 5, 6, 0]]


def test_another_packer_goes_on_between_any_two_documents():
    rule = PackingRule(context_size=7, begin_context=0, separator=1, end_context=2)
    documents = [np.arange(10, 10 + n, dtype=np.int32) for n in (1, 2, 1, 9, 1, 1, 3, 20, 1, 2)]
    whole = joined(pack_blocks(documents, rule), 7)
    for cut in range(len(documents) + 1):
        packer, blocks = Packer(rule, block_contexts=2), []
        for number, document in enumerate(documents):
            if number == cut:
                blocks.append(packer.take())
                packer = Packer(rule, block_contexts=2, under_way=packer.under_way)
            blocks.extend(packer.add(document))
        found = joined([*blocks, packer.take()], 7)
        assert (found.ids.tolist(), found.documents.tolist()) == (whole.ids.tolist(), whole.documents.tolist())
