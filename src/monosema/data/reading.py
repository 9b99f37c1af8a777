"""How text that is not kept in memory is read, tokenised and packed, from any place on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from monosema.core.config import to_plain
from monosema.core.errors import DataError
from monosema.data.config import Mixture, TextSource, TokenOptions
from monosema.data.contexts import Contexts, RowRule
from monosema.data.document_reader import DocumentReader
from monosema.data.file_formats import Document
from monosema.data.heldout import HeldoutRule, Window, choose_heldout
from monosema.data.packing import PackingRule, joined, pack_blocks
from monosema.data.streamed import Block, StreamedSplit
from monosema.data.tokenise import tokenise

HELDOUT_TOKENS = 2**18
"""Held-out tokens that are gathered from the beginning of the text."""


@dataclass(frozen=True, kw_only=True)
class BlockReader:
    """Tokenises and packs the training side of one source or of a mixture: a ``ReadBlocks``.

    The next block comes from the part whose tokens so far, divided by its weight, are fewest.
    """

    readers: Mapping[str, DocumentReader]
    """The parts by name."""
    when_dry: str
    """Whether the first part that ends, ends all of it (``stop``)."""
    tokenizer: Any
    """A transformers tokenizer."""
    packing: PackingRule
    """How documents become contexts."""
    keeps_documents: bool
    """Whether contexts come with their documents, for models to keep apart or for padding."""
    heldout: HeldoutRule
    """Which documents are left out."""

    def __call__(self, seed: int, epoch: int, place: Mapping[str, Any] | None) -> Iterator[Block]:
        for batch, at in self.documents(seed, epoch, place):
            contexts, n_tokens = self.contexts(batch, heldout=False)
            at[at["last"]]["n_tokens"] += n_tokens
            yield Block(contexts, json.loads(json.dumps(at)))

    def documents(self, seed: int, epoch: int, place: Mapping[str, Any] | None) -> Iterator[tuple[list[Document], Any]]:
        """Blocks of documents, both sides; whoever takes one counts its tokens in what comes with it."""
        fresh = {name: {"place": None, "n_tokens": 0, "is_dry": False} for name in self.readers}
        at: dict[str, Any] = json.loads(json.dumps({**fresh, "last": None} if place is None else dict(place)))
        blocks = {name: each.blocks(seed, epoch, at[name]["place"]) for name, each in self.readers.items()}
        while wet := [name for name in self.readers if not at[name]["is_dry"]]:
            name = min(wet, key=lambda each: at[each]["n_tokens"] / self.readers[each].source.weight)
            block = next(blocks[name], None)
            if block is None:
                at[name]["is_dry"] = True
                if self.when_dry == "stop":
                    return
                continue
            at["last"], at[name]["place"] = name, block[1]
            yield block[0], at

    def contexts(self, documents: list[Document], *, heldout: bool) -> tuple[Contexts, int]:
        """One side of ``documents``, packed; and its number of tokens."""
        tokens = self.tokens(documents, heldout=heldout)
        return self.packed(tokens), sum(map(len, tokens))

    def tokens(self, documents: list[Document], *, heldout: bool) -> list[np.ndarray]:
        """The tokens of ``documents`` that are on that side."""
        rule = self.heldout
        side = [each for each in documents if each.text.strip() and rule.concerns(each.name, heldout=heldout)]
        return [rule.part(each.document.name, each.tokens, heldout=heldout) for each in tokenise(side, self.tokenizer)]

    def packed(self, tokens: list[np.ndarray]) -> Contexts:
        """Contexts of documents with these ``tokens``."""
        packed = joined(pack_blocks(tokens, self.packing), self.packing.context_size)
        documents_NT = torch.from_numpy(packed.documents) if self.keeps_documents else None
        return Contexts(torch.from_numpy(packed.ids), documents_NT)


def open_readers(
    source: TextSource | Mixture, opened: Mapping[str, Any], options: TokenOptions, tokenizer: Any
) -> dict[str, DocumentReader]:
    """A reader for each part of ``source``. Raises ``DataError`` for what can be read once only."""
    parts = source.parts if isinstance(source, Mixture) else dict.fromkeys(opened, source)
    for name, part in parts.items():
        if isinstance(opened[name], Iterator) and not callable(part.source):
            raise DataError(
                "an iterator can be read once only, and text that is not kept in memory is read from any place on; "
                "give a function that returns a fresh one"
            )
    return {
        name: DocumentReader(source=part, opened=opened[name], options=options, tokenizer=tokenizer)
        for name, part in parts.items()
    }


def choose_streamed(reader: BlockReader, fraction: float, *, is_counted: bool) -> BlockReader:
    """``reader`` with the rule that holds out a ``fraction`` of documents, chosen by the first ones of the text."""
    if fraction == 0:
        return replace(reader, heldout=HeldoutRule(below=0.0))
    window, first = Window(), list[Document]()
    for batch, at in reader.documents(0, 0, None):
        at[at["last"]]["n_tokens"] += max(1, sum(len(each.text) for each in batch))
        for each in batch:
            if each.text.strip() and not window.is_full:
                first.append(each)
                window.add(each)
        if window.is_full:
            break
    tokenised = [*tokenise(first, reader.tokenizer)]
    rule = choose_heldout(tokenised, fraction, reader.packing, is_whole=not window.is_full, is_counted=is_counted)
    return replace(reader, heldout=rule)


def gather_heldout(reader: BlockReader) -> tuple[Contexts, dict[str, Any]]:
    """Held-out contexts from the beginning of the text, and what is seen of it, JSON-able.

    Raises ``DataError`` where the text is empty.
    """
    digest, tokens, n_read, n_tokens = hashlib.sha256(), list[np.ndarray](), 0, 0
    for batch, at in reader.documents(0, 0, None):
        own = reader.tokens(batch, heldout=True)
        n = sum(map(len, own))
        at[at["last"]]["n_tokens"] += max(n, 1)
        tokens += own
        n_tokens += n
        if n_read == 0:
            for each in batch:
                digest.update(each.name.encode("utf-8", "surrogatepass"))
        n_read += len(batch)
        if n_tokens >= HELDOUT_TOKENS or reader.heldout.is_empty:
            break
    if n_read == 0:
        raise DataError("the text is empty")
    seen = {
        "first_documents_sha256": digest.hexdigest(),
        "n_documents_read_for_heldout": n_read,
        "heldout_rule": to_plain(reader.heldout),
    }
    return reader.packed(tokens), seen


def streamed_split(reader: BlockReader, rule: RowRule, record: Mapping[str, Any]) -> StreamedSplit:
    """The training side; ``record`` is what is known of it beforehand. Raises ``DataError`` where it has no context."""
    fingerprint = hashlib.sha256(json.dumps(dict(record), sort_keys=True, default=str).encode()).hexdigest()
    size = reader.packing.context_size
    first = next((block.contexts for block in reader(0, 0, None) if len(block.contexts)), None)
    if first is None:
        raise DataError(
            f"the training text fills no context of {size} tokens; give more text or a smaller context_size"
        )
    rows = rule.row_mask(first).sum(1).double().mean().item()
    return StreamedSplit(reader, size, rule, "train", fingerprint, rows)
