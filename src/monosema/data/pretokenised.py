"""Rows of token ids that somebody else made, held against what is written beside them and the tokenizer in use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monosema.core.errors import ConfigError, DataError
from monosema.core.files import read_json
from monosema.core.logs import get_logger
from monosema.core.plain import text_in, whole_in
from monosema.core.words import counted
from monosema.data.token_rows import TokenRows, token_rows

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
) -> TokenRows:
    """``token_rows``, held against ``metadata``; ``DataError`` for rows that are not framed as that says."""
    rows = token_rows(dataset, column, context_size, max_rows, tokenizer)
    _check(rows, tokenizer, metadata)
    return rows


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


def _check(rows: TokenRows, tokenizer: Any, metadata: Mapping[str, Any]) -> None:
    if tokenizer is None:
        return
    theirs = text_in(metadata, "tokenizer_name", METADATA) or ""
    ours = str(getattr(tokenizer, "name_or_path", "") or "")
    if theirs and ours and Path(theirs).name != Path(ours).name:
        logger.warning(
            "the pretokenised rows were made with the tokenizer %r, the model's is %r; the ids mean the same only "
            "where their vocabularies are one",
            theirs,
            ours,
        )
    if whole_in(metadata, "context_size", METADATA) not in (None, rows.longest):
        raise DataError(
            f"{METADATA} speaks of rows of {counted(metadata['context_size'], 'token')}, the dataset has rows of "
            f"{rows.longest}; "
            "the file belongs to another dataset: delete it, or get the right one"
        )
    begin, first = framing(tokenizer, metadata).get("begin_context"), rows.ids[:, 0]
    if begin is not None and not bool((first == begin).all()):
        other = int(first[first != begin][0])
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
