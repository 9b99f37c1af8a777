"""From documents to shards, batch by batch: what is pending in memory is at most a shard and a batch of each side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monosema.core.errors import DataError
from monosema.core.files import remove_leftovers
from monosema.data.documents import Document, TextFingerprint
from monosema.data.packing import Packer, PackingRule
from monosema.data.pretokenized.contexts import StoredContexts, write_shard
from monosema.data.pretokenized.layout import write_layout
from monosema.data.pretokenized.manifest import FoundText, Manifest, Position, StoredSide
from monosema.data.stdlib import is_heldout_name
from monosema.data.tokens import refuse_too_little, tokenise


class TokenWriter:
    """Goes on from ``begun``: documents it has packed are only read, for the fingerprint, and not tokenised again.

    A side's state behind a shard is the number of documents read and the tokens carried to its next context, so the two
    sides stand at different documents. Batches must be cut alike every time.
    """

    def __init__(self, folder: Path, begun: Manifest, rule: PackingRule, tokenizer: Any):
        self._folder, self._plan, self._tokenizer = folder, begun.plan, tokenizer
        for each in (folder, folder / "train", folder / "heldout"):
            remove_leftovers(each)
        self._train = _Side(folder / "train", begun.train, rule)
        self._heldout = _Side(folder / "heldout", begun.heldout, rule)
        self._fingerprint = TextFingerprint()
        self._n_documents = self._n_heldout = 0
        self._manifest().write(folder)

    def add(self, batch: Sequence[Document]) -> None:
        """Pack the next documents and write what fills a shard.

        Raises ``DataError`` where they are not those that were packed before.
        """
        before = self._n_documents
        self._n_documents += len(batch)
        parts: tuple[list[Document], list[Document]] = ([], [])
        for document in batch:
            self._fingerprint.add(document)
            parts[is_heldout_name(document.name, self._plan.heldout_fraction)].append(document)
        self._n_heldout += len(parts[1])
        for side, part in zip((self._train, self._heldout), parts, strict=True):
            if side.n_documents > before:
                if side.n_documents <= self._n_documents:
                    self._require_same_text(side)
                continue
            side.pending.append(side.packer.add(tokenise(part, self._tokenizer)))
            if sum(map(len, side.pending)) >= self._plan.shard_contexts:
                self._flush(side)
                self._manifest().write(self._folder)

    def finish(self) -> Manifest:
        """Write what is left, read all shards once, and say what they hold."""
        sides = []
        for side in (self._train, self._heldout):
            if side.n_documents > self._n_documents:
                self._require_same_text(side)
            if sum(map(len, side.pending)):
                self._flush(side)
            shards = side.stored.shards
            contexts = StoredContexts(side.folder, shards, self._plan.context_size)
            sides.append(StoredSide(shards=shards, fingerprint=_fingerprint(contexts)))
        refuse_too_little(sides[0].n_contexts, self._plan.context_size)
        text = FoundText(
            text_sha256=self._fingerprint.hexdigest(),
            n_documents=self._n_documents,
            n_heldout_documents=self._n_heldout,
        )
        manifest = Manifest(plan=self._plan, train=sides[0], heldout=sides[1], text=text)
        write_layout(self._folder, manifest)
        manifest.write(self._folder)
        return manifest

    def _manifest(self) -> Manifest:
        return Manifest(plan=self._plan, train=self._train.stored, heldout=self._heldout.stored)

    def _require_same_text(self, side: _Side) -> None:
        position = side.stored.position
        assert position is not None
        if position.text_sha256 != self._fingerprint.hexdigest():
            raise DataError(
                f"{self._plan.source} holds other text than when {self._folder} was begun; choose another folder, or "
                "delete this one"
            )

    def _flush(self, side: _Side) -> None:
        shard = write_shard(side.folder, len(side.stored.shards), np.concatenate(side.pending))
        position = Position(
            n_documents=self._n_documents,
            carried=tuple(side.packer.carried),
            text_sha256=self._fingerprint.hexdigest(),
        )
        side.stored = replace(side.stored, shards=(*side.stored.shards, shard), position=position)
        side.pending = []


class _Side:
    """One side of the split while it is written."""

    def __init__(self, folder: Path, stored: StoredSide, rule: PackingRule):
        self.folder, self.stored = folder, stored
        position = stored.position
        self.n_documents = 0 if position is None else position.n_documents
        self.packer = Packer(rule, () if position is None else position.carried)
        self.pending: list[np.ndarray] = []


def _fingerprint(contexts: StoredContexts) -> str:
    """As of a ``TokenSplit`` in memory, in one pass over the shards."""
    digest = hashlib.sha256(str(tuple(contexts.shape)).encode())
    for piece in contexts.pieces():
        digest.update(piece.data)
    return digest.hexdigest()
