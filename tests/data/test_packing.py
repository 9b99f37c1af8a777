"""Packing against SAELens' rules, written anew from their description, and against contexts worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monosema.core.errors import ConfigError
from monosema.data import PackingRule, pack

Ids = Sequence[int]


def saelens_pack(documents: Sequence[Ids], size: int, begin: int | None, separator: int | None) -> list[list[int]]:
    """SAELens 6.54's ``concat_and_batch_sequences`` without a begin-of-sequence token: plain lists, no cleverness."""
    finished: list[list[int]] = []
    batch: list[int] | None = None
    for document in documents:
        offset = 0
        while offset < len(document):
            first = document[offset]
            if batch is None:
                prefix = [begin] if begin is not None and first != begin else []
                needed = max(size - len(prefix), 0)
                batch = prefix[:size] + list(document[offset : offset + needed])
            else:
                prefix = [separator] if separator is not None and first != separator else []
                needed = max(size - len(batch) - len(prefix), 0)
                batch = batch + prefix[: max(size - len(batch), 0)] + list(document[offset : offset + needed])
            offset += needed
            if len(batch) == size:
                finished.append(batch)
                batch = None
    return finished


def packed(documents: Sequence[Ids], size: int, begin: int | None, separator: int | None, end: int | None = None):
    rule = PackingRule(context_size=size, begin_context=begin, separator=separator, end_context=end)
    return pack([np.array(ids, dtype=np.int64) for ids in documents], rule).tolist()


marks = st.sampled_from([None, 0, 1])
texts = st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=8)


@settings(max_examples=400, deadline=None)
@given(documents=texts, size=st.integers(2, 7), begin=marks, separator=marks)
@example(documents=[[2, 3, 2], [3, 3, 3, 3]], size=4, begin=None, separator=0)  # the separator is the last that fits
@example(documents=[[0, 2], [0, 3, 2], [0]], size=3, begin=0, separator=0)  # documents that bring their mark
@example(documents=[[2] * 9, [1], [0]], size=2, begin=0, separator=1)  # tiny contexts
def test_packing_equals_saelens_rules(documents, size, begin, separator):
    assert packed(documents, size, begin, separator) == saelens_pack(documents, size, begin, separator)


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
