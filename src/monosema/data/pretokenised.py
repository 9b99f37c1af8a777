"""Rows of token ids that somebody else made: cut to one length, and held against the tokenizer they are read with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monosema.core.errors import ConfigError, DataError
from monosema.core.files import read_json
from monosema.core.logs import get_logger
from monosema.core.plain import text_in, whole_in

logger = get_logger("monosema.data")

METADATA = "sae_lens.json"
"""What SAELens writes beside a dataset that it tokenised."""

_MARKS = {
    "begin_context": "begin_batch_token",
    "begin_document": "begin_sequence_token",
    "separator": "sequence_separator_token",
}
"""What frames contexts and documents; our word and SAELens'."""


def find_metadata(source: Any) -> Mapping[str, Any]:
    """What SAELens wrote about the dataset ``source`` when it tokenised it; empty where it did not.

    Looked for in a folder, and in the hub's repository of a dataset that is named.
    """
    if not isinstance(source, (str, Path)):
        return {}
    if Path(source).exists():
        file = Path(source) / METADATA
        found = file if file.is_file() else None
    else:
        found = _on_hub(str(source))
    if found is None:
        return {}
    metadata = read_json(found)
    if not isinstance(metadata, dict):
        raise DataError(f"{found} must hold a JSON object; delete it to have the rows taken as they are")
    return metadata


def read_rows(
    dataset: Any,
    column: str,
    context_size: int | None,
    max_rows: int | None,
    tokenizer: Any,
    metadata: Mapping[str, Any],
) -> np.ndarray:
    """The rows ``[n, context_size]`` int32 of ``column``, longer ones cut; the first row's length where it is None.

    Raises ``DataError`` for rows that are too short, and for ids that are not the tokenizer's or not framed as
    ``metadata`` says.
    """
    if hasattr(dataset, "__len__"):
        rows = dataset.select_columns([column]).with_format("numpy")[:max_rows][column]
    else:  # streamed
        rows = [np.asarray(row[column]) for row in itertools.islice(dataset, max_rows)]
    lengths = {len(row) for row in rows}
    if not lengths:
        raise DataError("the pretokenised dataset is empty")
    size = context_size if context_size is not None else len(rows[0])
    if min(lengths) < size:
        raise DataError(
            f"a pretokenised row has {min(lengths)} tokens, context_size is {size}; use context_size={min(lengths)}"
        )
    if max(lengths) > size:
        logger.warning("pretokenised rows of up to %d are cut to %d", max(lengths), size)
    contexts = np.stack([np.asarray(row[:size]) for row in rows]).astype(np.int32)
    _check(contexts, max(lengths), tokenizer, metadata)
    return contexts


def framing(tokenizer: Any, metadata: Mapping[str, Any]) -> dict[str, int | None]:
    """The ids of the tokens that frame contexts and documents, as far as ``metadata`` says so."""
    return {ours: _mark_id(metadata[theirs], tokenizer) for ours, theirs in _MARKS.items() if theirs in metadata}


def opening_token(tokenizer: Any, metadata: Mapping[str, Any]) -> int:
    """The token that begins a document within a row; ``ConfigError`` where nothing says which."""
    marks = framing(tokenizer, metadata)
    roles = (getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos"))
    known = [mark for mark in (marks.get("separator"), marks.get("begin_document"), *roles) if mark is not None]
    if not known:
        raise ConfigError(
            "attend_across_documents=False needs to know where documents begin in pretokenised rows: pass a tokenizer "
            "with a BOS or EOS token"
        )
    return known[0]


def _check(contexts: np.ndarray, length: int, tokenizer: Any, metadata: Mapping[str, Any]) -> None:
    if tokenizer is None:
        return
    low, high = int(contexts.min()), int(contexts.max())
    if low < 0 or high >= len(tokenizer):
        raise DataError(
            f"the pretokenised rows hold token id {low if low < 0 else high}, the tokenizer's are 0 to "
            f"{len(tokenizer) - 1}: they were made by another one; pass that, or tokenise the text anew"
        )
    theirs, ours = (
        text_in(metadata, "tokenizer_name", METADATA) or "",
        str(getattr(tokenizer, "name_or_path", "") or ""),
    )
    if theirs and ours and Path(theirs).name != Path(ours).name:
        logger.warning(
            "the pretokenised rows were made with the tokenizer %r, the model's is %r; the ids mean the same only "
            "where their vocabularies are one",
            theirs,
            ours,
        )
    if whole_in(metadata, "context_size", METADATA) not in (None, length):
        raise DataError(
            f"{METADATA} speaks of rows of {metadata['context_size']} tokens, the dataset has rows of {length}; the "
            "file belongs to another dataset: delete it, or get the right one"
        )
    begin = framing(tokenizer, metadata).get("begin_context")
    if begin is not None and not bool((contexts[:, 0] == begin).all()):
        other = int(contexts[:, 0][contexts[:, 0] != begin][0])
        raise DataError(
            f"by {METADATA} every row begins with {metadata[_MARKS['begin_context']]!r}, which is {begin} for this "
            f"tokenizer, but one begins with {other}: the rows were made with another tokenizer; pass that one"
        )


def _mark_id(mark: Any, tokenizer: Any) -> int | None:
    if isinstance(mark, str):
        found = getattr(tokenizer, f"{mark}_token_id", None)
        return None if found is None else int(found)
    if mark is not None and type(mark) is not int:
        raise DataError(f"{METADATA}: a token that frames rows must be a name or a whole number, got {mark!r:.80}")
    return mark


def _on_hub(name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, METADATA, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, OSError):  # no such file, no such repository, or no network
        return None
