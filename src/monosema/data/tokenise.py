"""Documents to token ids, in batches large enough for the threads of fast tokenizers."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monosema.core.errors import ConfigError, DataError
from monosema.data.file_formats import Document
from monosema.data.workers import Workers

BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 2**21
"""A batch ends with the document that reaches either: enough for every thread, and some 100 MB in the tokenizer."""

_Batch = tuple[list[Document], list[str]]
"""Documents, and of each the text to be tokenised."""


@dataclass(frozen=True)
class TokenisedDocument:
    """A document and its tokens."""

    document: Document
    """What was tokenised."""
    tokens: np.ndarray
    """[n_tokens] int32; no special tokens but those that the text spells out."""


def tokenise(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    workers: Workers | None = None,
    is_wanted: Callable[[Document], bool] | None = None,
) -> Iterator[TokenisedDocument]:
    """The tokens of each of ``documents``, in their order; read and tokenised batch by batch.

    Args:
        documents: texts, of which one batch is held (with ``workers``, two for each process).
        tokenizer: a transformers tokenizer.
        workers: processes to do it, worth it where the tokenizer is slow; see ``Workers`` and ``encode``.
        is_wanted: asked about each document once, in order; the others come without tokens.

    Raises ``ConfigError`` where there is no tokenizer, ``DataError`` for a text that cannot be tokenised.
    """
    if tokenizer is None:
        raise ConfigError("text needs a tokenizer: pass model.tokenizer, or pretokenised data")
    batches = ((batch, _texts(batch, is_wanted)) for batch in _batches(documents))
    encoded = _encoded_here(batches, tokenizer) if workers is None else _encoded_by(workers, batches)
    return itertools.chain.from_iterable(encoded)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of each text ``[n_tokens]`` int32; ``DataError`` for one that no tokenizer takes."""
    n_first = 1 if _encodes_alone(tokenizer) else len(texts)
    try:
        # The first also leaves its backend without truncation and padding, for the others.
        encoded = tokenizer(texts[:n_first], add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows = list(encoded["input_ids"])
        if n_first < len(texts):
            others = tokenizer.backend_tokenizer.encode_batch_fast(texts[n_first:], add_special_tokens=False)
            rows += [each.ids for each in others]
    except (TypeError, ValueError):
        for text in texts:
            _refuse_half_characters(text)
        raise
    return [np.array(row, dtype=np.int32) for row in rows]


def _encodes_alone(tokenizer: Any) -> bool:
    """Whether the Rust tokenizer by itself, which can leave out offsets, gives what ``tokenizer`` does."""
    from transformers import PreTrainedTokenizerFast

    own = type(tokenizer)
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(own, name, None) is getattr(PreTrainedTokenizerFast, name, None)
        for name in ("__call__", "_call_one", "_encode_plus", "_batch_encode_plus", "_convert_encoding")
    )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    n_characters = 0
    for document in documents:
        batch.append(document)
        n_characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or n_characters >= BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def _encoded_here(batches: Iterable[_Batch], tokenizer: Any) -> Iterator[list[TokenisedDocument]]:
    for batch, texts in batches:
        yield _together(batch, encode(tokenizer, texts))


def _encoded_by(workers: Workers, batches: Iterator[_Batch]) -> Iterator[list[TokenisedDocument]]:
    waiting = deque(
        (batch, workers.submit(texts)) for batch, texts in itertools.islice(batches, 2 * workers.n_processes)
    )
    while waiting:
        batch, future = waiting.popleft()
        rows = workers.result(future)
        waiting.extend((each, workers.submit(texts)) for each, texts in itertools.islice(batches, 1))
        yield _together(batch, rows)


def _texts(batch: list[Document], is_wanted: Callable[[Document], bool] | None) -> list[str]:
    return [document.text if is_wanted is None or is_wanted(document) else "" for document in batch]


def _together(batch: list[Document], rows: list[np.ndarray]) -> list[TokenisedDocument]:
    return [TokenisedDocument(document, tokens) for document, tokens in zip(batch, rows, strict=True)]


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the document that begins {text[:40]!r} holds half a character (a lone surrogate, at character "
            f"{error.start}), which no tokenizer takes; leave it out, or replace such characters"
        ) from error
