"""Packing documents into contexts of exactly ``context_size`` tokens, block by block.

Packed: a context starts with the begin token; documents follow one another, parted by the separator; where a document
runs over, it goes on in the next context, and the tail that fills no context is dropped. A token that is already there
is not written twice. The rules are SAELens' ``concat_and_batch_sequences`` (6.54), token for token. The other modes
give each document contexts of its own; what it does not fill is padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from monosema.core.errors import ConfigError
from monosema.data.packing_config import Mark, Packing, PackingMode

PADDING = -1
"""Number of the document that padding belongs to."""

BLOCK_CONTEXTS = 1024


@dataclass(frozen=True, kw_only=True)
class PackingRule:
    """Which tokens frame contexts and documents; None leaves the place empty."""

    context_size: int
    """Tokens in a context, framing included."""
    begin_context: int | None
    """First token of every context (BOS, [CLS])."""
    separator: int | None
    """Token between two documents of one context (BOS, EOS, [SEP])."""
    end_context: int | None = None
    """Last token of every context ([SEP] of encoders)."""
    begin_document: int | None = None
    """First token of every document."""
    mode: PackingMode = "packed"
    """See ``Packing``."""
    padding: int = 0
    """What stands where a context has no token."""
    document_tokens: int | None = None
    """Of each document the first so many; all where None."""

    def __post_init__(self) -> None:
        begins = {self.begin_context} if self.mode == "packed" else {self.begin_context, self.begin_document}
        framing = len(begins - {None}) + (self.end_context is not None)
        if self.context_size <= framing:
            raise ConfigError(f"context_size must exceed {framing}, got {self.context_size}")

    def record(self) -> dict[str, int | None]:
        """The tokens that frame text, JSON-able."""
        return {
            "begin_context": self.begin_context,
            "begin_document": self.begin_document,
            "separator": self.separator,
            "end_context": self.end_context,
        }


@dataclass(frozen=True)
class PackedBlock:
    """Some contexts, in order."""

    ids: np.ndarray
    """Token ids ``[n, context_size]`` int32."""
    documents: np.ndarray
    """Number, within its context, of the document that each position belongs to (what opens a document belongs to it);
    ``PADDING`` for none. The same shape."""


def packing_rule(packing: Packing, tokenizer: Any, context_size: int) -> PackingRule:
    """``packing`` with the ids of a tokenizer; ``ConfigError`` for a token that it does not have."""
    values = packing.resolved()
    assert values.mode is not None
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    return PackingRule(
        context_size=context_size,
        begin_context=_mark_id(values.begin_context, "begin_context", tokenizer),
        begin_document=_mark_id(values.begin_document, "begin_document", tokenizer),
        separator=_mark_id(values.separator, "separator", tokenizer) if values.mode == "packed" else None,
        end_context=_mark_id(values.end_context, "end_context", tokenizer),
        mode=values.mode,
        padding=pad if pad is not None else eos if eos is not None else 0,
        document_tokens=values.document_tokens,
    )


def pack(documents: Iterable[np.ndarray], rule: PackingRule) -> np.ndarray:
    """Contexts ``[n, context_size]`` int32 from tokenised documents, in order."""
    return joined(pack_blocks(documents, rule), rule.context_size).ids


def joined(blocks: Iterable[PackedBlock], context_size: int) -> PackedBlock:
    """One block of several; one without contexts of none."""
    listed = [_Canvas.empty_block(context_size), *blocks]
    return PackedBlock(
        np.concatenate([block.ids for block in listed]), np.concatenate([block.documents for block in listed])
    )


def pack_blocks(
    documents: Iterable[np.ndarray], rule: PackingRule, block_contexts: int = BLOCK_CONTEXTS
) -> Iterator[PackedBlock]:
    """The same, ``block_contexts`` contexts at a time; ``documents`` are read as far as each block needs them."""
    packer = Packer(rule, block_contexts)
    for document in documents:
        yield from packer.add(document)
    if packer.n_contexts:
        yield packer.take()


@final
class Packer:
    """Packs documents as they come; ``under_way`` of one is where another goes on."""

    def __init__(self, rule: PackingRule, block_contexts: int = BLOCK_CONTEXTS, under_way: PackedBlock | None = None):
        self._rule = rule
        self._canvas = _Canvas(rule, block_contexts)
        self._fill = _fill_packed if rule.mode == "packed" else _fill_windows
        if under_way is not None:
            self._canvas.begin(under_way.ids[0], under_way.documents[0])

    def add(self, document: np.ndarray) -> Iterator[PackedBlock]:
        """The blocks that fill up with one more document, each of ``block_contexts`` contexts."""
        for _ in self._fill(document[: self._rule.document_tokens], self._rule, self._canvas):
            yield self._canvas.take()

    @property
    def n_contexts(self) -> int:
        """Contexts that are done and not taken yet."""
        return self._canvas.n_contexts

    def take(self) -> PackedBlock:
        """These contexts; what is under way stays."""
        return self._canvas.take()

    @property
    def under_way(self) -> PackedBlock:
        """The beginning of the next context, ``[1, n]``."""
        return self._canvas.under_way


def document_numbers(rows: np.ndarray, opens: int | None) -> np.ndarray:
    """``PackedBlock.documents`` of contexts that are packed already: each token ``opens`` begins a document.

    Several in a row begin one document. Without such a token each row is one document.
    """
    numbers = np.zeros(rows.shape, dtype=document_type(rows.shape[1]))
    if opens is not None:
        begins = rows[:, 1:] == opens
        begins &= rows[:, :-1] != opens
        np.cumsum(begins, axis=1, out=numbers[:, 1:], dtype=numbers.dtype)
    return numbers


def _fill_packed(document: np.ndarray, rule: PackingRule, canvas: _Canvas) -> Iterator[None]:
    """Write one document behind the others; stops whenever the canvas is full."""
    offset, at_start = 0, True
    while offset < len(document):
        if offset > 0:
            offset += canvas.put_contexts(document[offset:], rule.begin_context)
            if canvas.is_full:
                yield
            if offset == len(document):
                return
        prefix, first = [], int(document[offset])
        if at_start and rule.begin_document is not None and first != rule.begin_document:
            prefix, first = [rule.begin_document], rule.begin_document
        at_start = bool(prefix)
        mark = rule.separator if canvas.filled else rule.begin_context
        if mark is not None and first != mark:
            prefix = [mark, *prefix]
        canvas.begin_document()
        room = canvas.room
        at_start = at_start and len(prefix) > room  # the document's first token is still to come
        if prefix:
            canvas.put(np.array(prefix[:room], dtype=np.int32))
        offset += canvas.put(document[offset:])
        if canvas.room == 0:
            canvas.close()
        if canvas.is_full:
            yield


def _fill_windows(document: np.ndarray, rule: PackingRule, canvas: _Canvas) -> Iterator[None]:
    """Write one document into contexts of its own; stops whenever the canvas is full."""
    offset = 0
    while offset < len(document):
        if offset > 0:
            offset += canvas.put_contexts(document[offset:], rule.begin_context)
            if canvas.is_full:
                yield
            if offset == len(document):
                return
        prefix: list[int] = []
        first = int(document[offset])
        begin_document = rule.begin_document if offset == 0 else None
        begin_context = rule.begin_context
        if rule.mode == "one_document" and begin_document is not None:
            begin_context = None  # as in SAELens, where the one stands for the other
        for mark in (begin_document, begin_context):
            if mark is not None and first != mark:
                prefix, first = [mark, *prefix], mark
        if rule.mode == "one_document" and len(prefix) + len(document) < canvas.room:
            return
        canvas.put(np.array(prefix, dtype=np.int32))
        offset += canvas.put(document[offset:])
        canvas.close()
        if canvas.is_full:
            yield
        if rule.mode != "windows":
            return


@final
class _Canvas:
    """The block that is being filled, context by context from left to right."""

    def __init__(self, rule: PackingRule, n_contexts: int):
        self._rule = rule
        self._size = rule.context_size - (rule.end_context is not None)
        self._shape = (n_contexts, rule.context_size)
        self._document = 0
        self.filled = 0
        self._renew()

    def _renew(self) -> None:
        self.n_contexts = 0
        self._ids = np.full(self._shape, self._rule.padding, dtype=np.int32)
        self._documents = np.full(self._shape, PADDING, dtype=document_type(self._shape[1]))

    @staticmethod
    def empty_block(context_size: int) -> PackedBlock:
        """A block of no contexts."""
        shape = (0, context_size)
        return PackedBlock(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=document_type(context_size)))

    @property
    def room(self) -> int:
        """Tokens that the context still takes."""
        return self._size - self.filled

    def begin_document(self) -> None:
        """What is put from now on belongs to another document than what is there."""
        self._document += self.filled > 0

    def put(self, tokens: np.ndarray) -> int:
        """Write what fits; returns how much that was."""
        stop = min(self.filled + len(tokens), self._size)
        self._ids[self.n_contexts, self.filled : stop] = tokens[: stop - self.filled]
        self._documents[self.n_contexts, self.filled : stop] = self._document
        taken, self.filled = stop - self.filled, stop
        return taken

    def put_contexts(self, tokens: np.ndarray, begin: int | None) -> int:
        """Write whole contexts of one document's ``tokens``, each behind ``begin``, where no context is under way.

        As many as there is room for, or none where one would begin with ``begin`` anyway; returns the tokens taken.
        """
        step = self._size - (begin is not None)
        n = min(len(tokens) // step, self._shape[0] - self.n_contexts)
        taken = tokens[: n * step]
        if n == 0 or (begin is not None and bool((taken[::step] == begin).any())):
            return 0
        rows = slice(self.n_contexts, self.n_contexts + n)
        self._ids[rows, self._size - step : self._size] = taken.reshape(n, step)
        if begin is not None:
            self._ids[rows, 0] = begin
        if self._rule.end_context is not None:
            self._ids[rows, -1] = self._rule.end_context
        self._documents[rows] = 0
        self.n_contexts += n
        return len(taken)

    def close(self) -> None:
        """End the context."""
        if self._rule.end_context is not None:
            self._ids[self.n_contexts, self.filled] = self._rule.end_context
            self._documents[self.n_contexts, self.filled] = self._document
        self.n_contexts += 1
        self.filled = self._document = 0

    @property
    def is_full(self) -> bool:
        """Whether every context of the block is done."""
        return self.n_contexts == self._shape[0]

    @property
    def under_way(self) -> PackedBlock:
        """What there is of the context that is not full yet, ``[1, n]``; nothing where all are."""
        row, part = slice(self.n_contexts, self.n_contexts + 1), slice(self.filled)
        ids, documents = self._ids[row, part], self._documents[row, part]
        return PackedBlock(ids.reshape(1, self.filled), documents.reshape(1, self.filled))

    def begin(self, ids: np.ndarray, documents: np.ndarray) -> None:
        """Put what a context begins with."""
        self.filled = len(ids)
        self._ids[0, : self.filled], self._documents[0, : self.filled] = ids, documents
        self._document = int(documents[-1]) if self.filled else 0

    def take(self) -> PackedBlock:
        """The contexts that are done; of the canvas only the one under way is left."""
        block, rest = PackedBlock(self._ids[: self.n_contexts], self._documents[: self.n_contexts]), self.under_way
        self._renew()
        self.begin(rest.ids[0], rest.documents[0])
        return block


def document_type(context_size: int) -> type[np.int16 | np.int32]:
    """Of the numbers of documents within contexts of that size."""
    return np.int16 if context_size <= np.iinfo(np.int16).max else np.int32


def _mark_id(mark: Mark | None, place: str, tokenizer: Any) -> int | None:
    if mark is None or mark == "none" or isinstance(mark, int):
        return None if isinstance(mark, str) else mark
    if mark == "own":
        return _own_mark(tokenizer, at_end=place == "end_context")
    if mark != "auto":
        found = getattr(tokenizer, f"{mark}_token_id")
        if found is None:
            raise ConfigError(f"{place}={mark!r}: the tokenizer has no such token; give an id, or 'none'")
        return int(found)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if cls is not None and sep is not None:
        return int(cls if place in ("begin_context", "begin_document") else sep)
    if place == "end_context":
        return None
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if begin is None else int(begin)


def _own_mark(tokenizer: Any, *, at_end: bool) -> int | None:
    """The token that the tokenizer puts before (or behind) a text by itself."""
    framed, plain = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    start = next(at for at in range(len(framed)) if list(framed[at : at + len(plain)]) == list(plain))
    marks = framed[start + len(plain) :] if at_end else framed[:start]
    if len(marks) > 1:
        raise ConfigError(
            f"the tokenizer puts {len(marks)} tokens there by itself ({list(marks)}); name one, or 'none'"
        )
    return int(marks[0]) if marks else None
