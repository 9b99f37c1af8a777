"""From documents to shards: what is pending in memory is at most a shard and a document of each side."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from monosema.core.errors import DataError, FileError
from monosema.core.files import free_disk, remove_leftovers
from monosema.core.words import counted
from monosema.data.corpus import Corpus
from monosema.data.documents import TextFingerprint
from monosema.data.file_formats import Document
from monosema.data.heldout import DividedDocument, Divider
from monosema.data.loading import refuse_too_little
from monosema.data.packed.contexts import DOCUMENTS, StoredContexts, write_shard
from monosema.data.packed.layout import write_layout
from monosema.data.packed.manifest import FoundText, Manifest, Position, StoredSide
from monosema.data.packed.read import StoredTokens
from monosema.data.packing import PackedBlock, Packer, PackingRule, joined
from monosema.data.tokenise import TokenisedDocument


class TokenWriter:
    """Goes on from ``begun``: documents it has packed are only read, for the fingerprint.

    A side's state behind a shard is the number of documents read and the tokens carried to its next context, so the two
    sides stand at different documents.
    """

    def __init__(self, folder: Path, begun: Manifest, rule: PackingRule, *, is_counted: bool):
        self._folder, self._plan = folder, begun.plan
        self._divider = Divider(self._plan.heldout_fraction, rule, is_counted=is_counted, rule=begun.heldout_rule)
        self._fingerprint = TextFingerprint()
        for each in (folder, folder / "train", folder / "heldout"):
            remove_leftovers(each)
        self._train = _Side(folder / "train", begun.train, rule)
        self._heldout = _Side(folder / "heldout", begun.heldout, rule)
        self._n_documents = 0
        self._manifest().write(folder)

    def wants(self) -> Callable[[Document], bool]:
        """Of each document in turn, from the first on: whether it is still to be packed."""
        numbers = itertools.count(1)
        return lambda document: self._wants(document, next(numbers))

    def _wants(self, document: Document, number: int) -> bool:
        rule = self._divider.rule
        return rule is None or any(
            number > side.n_documents and rule.concerns(document.name, heldout=side is self._heldout)
            for side in (self._train, self._heldout)
        )

    def divided(self, documents: Iterable[TokenisedDocument]) -> Iterator[DividedDocument]:
        """The documents with what of each is on either side; the first ones are read before any of them comes."""
        return self._divider(documents)

    def add(self, each: DividedDocument) -> None:
        """Pack the next document and write what fills a shard.

        Raises ``DataError`` where it holds not what was packed before, ``FileError`` where a shard cannot be written.
        """
        self._n_documents += 1
        self._fingerprint.add(each.document)
        for side in (self._train, self._heldout):
            if side.n_documents == self._n_documents:
                self._require_same_text(side)
        for side, tokens in ((self._train, each.train), (self._heldout, each.heldout)):
            if side.n_documents >= self._n_documents:
                continue
            side.add(tokens)
            if side.n_pending >= self._plan.shard_contexts:
                self._flush(side)
                self._manifest().write(self._folder)

    def finish(self, corpus: Corpus) -> Manifest:
        """Write what is left, read all shards once, and say what they hold."""
        if self._n_documents == 0:
            raise DataError("the text is empty")
        for side in (self._train, self._heldout):
            if side.n_documents > self._n_documents:
                self._require_same_text(side)
            if side.n_pending:
                self._flush(side)
        refuse_too_little(self._train.stored.n_contexts, self._plan.context_size)
        found = self._manifest()
        manifest = Manifest(
            plan=self._plan,
            heldout_rule=self._divider.rule,
            train=StoredSide(
                shards=found.train.shards, fingerprint=_fingerprint(StoredTokens(self._folder, found), "train")
            ),
            heldout=StoredSide(
                shards=found.heldout.shards, fingerprint=_fingerprint(StoredTokens(self._folder, found), "heldout")
            ),
            text=FoundText(**corpus.record(), n_heldout_documents=self._divider.n_heldout),
        )
        write_layout(self._folder, manifest)
        manifest.write(self._folder)
        return manifest

    def _manifest(self) -> Manifest:
        return Manifest(
            plan=self._plan,
            heldout_rule=self._divider.rule,
            train=self._train.stored,
            heldout=self._heldout.stored,
        )

    def _require_same_text(self, side: _Side) -> None:
        position = side.stored.position
        assert position is not None
        if position.text_sha256 != self._fingerprint.hexdigest():
            raise DataError(
                f"{self._plan.source} holds other text than when {self._folder} was begun; choose another folder, or "
                "delete this one"
            )

    def _flush(self, side: _Side) -> None:
        contexts = side.take(self._plan.context_size)
        n_bytes, free = contexts.ids.nbytes + contexts.documents.nbytes, free_disk(self._folder)
        if n_bytes > free:
            raise FileError(
                f"the next file of tokens takes {counted(n_bytes, 'byte')}, {self._folder} has {free:,} free; free "
                "some, and "
                "the same command goes on, or choose another folder"
            )
        shard = write_shard(side.folder, len(side.stored.shards), contexts, keeps_documents=self._plan.keeps_documents)
        under_way = side.packer.under_way
        position = Position(
            n_documents=self._n_documents,
            carried=tuple(under_way.ids[0].tolist()),
            carried_documents=tuple(under_way.documents[0].tolist()),
            text_sha256=self._fingerprint.hexdigest(),
        )
        side.stored = replace(side.stored, shards=(*side.stored.shards, shard), position=position)


class _Side:
    """One side of the split while it is written."""

    def __init__(self, folder: Path, stored: StoredSide, rule: PackingRule):
        self.folder, self.stored = folder, stored
        position = stored.position
        self.n_documents = 0 if position is None else position.n_documents
        carried = ((), ()) if position is None else (position.carried, position.carried_documents)
        self.packer = Packer(rule, under_way=PackedBlock(*(np.array([each], dtype=np.int32) for each in carried)))
        self._blocks: list[PackedBlock] = []
        self._n_in_blocks = 0

    @property
    def n_pending(self) -> int:
        """Contexts that are not on disk."""
        return self._n_in_blocks + self.packer.n_contexts

    def add(self, tokens: np.ndarray) -> None:
        """Pack one more document."""
        for block in self.packer.add(tokens):
            self._blocks.append(block)
            self._n_in_blocks += len(block.ids)

    def take(self, context_size: int) -> PackedBlock:
        """All that is pending."""
        contexts = joined([*self._blocks, self.packer.take()], context_size)
        self._blocks, self._n_in_blocks = [], 0
        return contexts


def _fingerprint(tokens: StoredTokens, side: str) -> str:
    """As of a ``TokenSplit`` in memory, in one pass over the shards for each column."""
    shards = tokens.shards(side)
    contexts = StoredContexts(shards)
    digest = hashlib.sha256(str(tuple(contexts.shape)).encode())
    for piece in contexts.pieces():
        digest.update(piece.data)
    if tokens.manifest.plan.keeps_documents:
        for piece in StoredContexts(shards, DOCUMENTS).pieces():
            digest.update(piece.astype(np.int32).data)
    return digest.hexdigest()
