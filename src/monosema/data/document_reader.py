"""The documents of one source: all in one go, or in blocks from any place on."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from monosema.core.seeds import random_stream
from monosema.data.config import TextSource, TokenOptions
from monosema.data.documents import documents_from, open_source
from monosema.data.file_formats import Document, named_by_text
from monosema.data.records import RecordText

BLOCK_DOCUMENTS = 512
"""Documents that are tokenised and packed together; the tail of a block that fills no context is dropped."""
SHUFFLED_DOCUMENTS = 2**13
"""Documents that are shuffled among each other with ``shuffle_documents``; their texts are in memory together."""


@dataclass(frozen=True, kw_only=True)
class DocumentReader:
    """One source's documents in blocks.

    A streamed Hugging Face dataset of several shards has them in an order that is drawn for every epoch, and goes on by
    its own state. Anything else is read in its order, and to go on it is read again up to the place, not tokenised.
    With ``shuffle_documents`` the documents of each group of ``SHUFFLED_DOCUMENTS`` come in a shuffled order.
    """

    source: TextSource
    """What is read, and which of its documents."""
    opened: Any
    """``open_source`` of it."""
    options: TokenOptions
    """How its text is read."""
    tokenizer: Any
    """A transformers tokenizer."""

    def all(self) -> Iterator[Document]:
        """Its documents in one go, in the order that the source has them, or shuffled."""
        source = self.source
        documents = documents_from(
            self.opened, column=source.column, max_documents=source.max_documents, tokenizer=self.tokenizer
        )
        if self.options.shuffle_documents is None:
            return documents
        groups = iter(lambda: list(itertools.islice(documents, SHUFFLED_DOCUMENTS)), [])
        return (each for number, group in enumerate(groups) for each in self._shuffled(group, number))

    def blocks(self, seed: int, epoch: int, place: Mapping[str, Any] | None) -> Iterator[tuple[list[Document], Any]]:
        """Documents of an epoch from ``place`` on, and the place behind them.

        A shuffled group of documents is several blocks. The state in a place is that of the dataset at the start of the
        group that is under way.
        """
        place = place or {"part": 0, "n_in_part": 0, "n": 0, "state": None}
        part, n_in_part, n, state = (place[key] for key in ("part", "n_in_part", "n", "state"))
        is_shuffled = self.options.shuffle_documents is not None
        size = SHUFFLED_DOCUMENTS if is_shuffled else BLOCK_DOCUMENTS
        parts = self._parts(seed, epoch)
        while part < len(parts) and self._left(n) > 0:
            n_done = n_in_part % size if is_shuffled else 0
            dataset, documents = self._documents(parts[part], n_in_part - n_done, state)
            while group := list(itertools.islice(documents, min(size, self._left(n - n_done)))):
                group = self._shuffled(group, n_in_part // size)
                behind = None if dataset is None else dataset.state_dict()
                for start in range(n_done, len(group), BLOCK_DOCUMENTS):
                    batch = group[start : start + BLOCK_DOCUMENTS]
                    n, n_in_part = n + len(batch), n_in_part + len(batch)
                    if not is_shuffled or n_in_part % size == 0:
                        state = behind
                    yield batch, {"part": part, "n_in_part": n_in_part, "n": n, "state": state}
                n_done = 0
            part, n_in_part, state = part + 1, 0, None

    def _shuffled(self, group: list[Document], number: int) -> list[Document]:
        """The group of that number in the order of ``shuffle_documents``."""
        seed = self.options.shuffle_documents
        if seed is None:
            return group
        order = torch.randperm(len(group), generator=random_stream(seed, "documents", number))
        return [group[place] for place in order.tolist()]

    def _left(self, n_read: int) -> int:
        most = self.source.max_documents
        return sys.maxsize if most is None else most - n_read

    def _parts(self, seed: int, epoch: int) -> list[Any]:
        """What is read one after the other; datasets are fresh, as one goes on from the last state it was given."""
        if not _keeps_state(self.opened):
            return [self.opened]
        n = self.opened.num_shards
        order = torch.randperm(n, generator=random_stream(seed, "shards", epoch)).tolist()
        return [self.opened.shard(n, each) for each in order]

    def _documents(self, part: Any, n_done: int, state: Any) -> tuple[Any, Iterator[Document]]:
        """The documents behind the first ``n_done``; and the dataset that knows where it stands, where it is one."""
        if not _keeps_state(part):
            again = open_source(self.source) if isinstance(part, Iterator) and callable(self.source.source) else part
            documents = documents_from(again, column=self.source.column, tokenizer=self.tokenizer)
            return None, itertools.islice(documents, n_done, None)
        text_of = RecordText(self.source.column, self.tokenizer)
        column = text_of.column_among(part.column_names or list(next(iter(part), {})), "the dataset")
        if state is not None:
            part.load_state_dict(state)
        rows = enumerate(part, start=n_done)
        return part, (named_by_text(text_of({column: row[column]}, f"the dataset, row {i}")) for i, row in rows)


def _keeps_state(source: Any) -> bool:
    return hasattr(source, "load_state_dict") and hasattr(source, "num_shards")
