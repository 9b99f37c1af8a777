"""Rows of token ids in a dataset: read strictly, cut to one length, padding told from text."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from monosema.core.errors import DataError
from monosema.core.logs import get_logger
from monosema.core.words import counted
from monosema.data.documents import require_sound

logger = get_logger("monosema.data")

MASK_COLUMN = "attention_mask"
"""Beside a column of tokens: 0 where a position is padding, 1 where it is text."""

DOCUMENTS = "documents"
"""The column of ``pretokenize``'s folders that numbers documents, -1 for padding."""

_AGAIN = "tokenise the text again, or name the column of token ids with column="
_NO_MASK = f"drop such rows, or the column {MASK_COLUMN!r} where it does not mean padding"
_MOST_ID = int(np.iinfo(np.int32).max)


@final
@dataclass(frozen=True)
class TokenRows:
    """Contexts that are packed already."""

    ids: np.ndarray
    """[n, context_size] int32."""
    is_padding: np.ndarray
    """[n, context_size] bool: True behind the text of a row."""
    longest: int
    """Tokens in the longest row before it was cut."""


def token_rows(
    dataset: Any,
    column: str,
    context_size: int | None,
    max_rows: int | None,
    tokenizer: Any,
) -> TokenRows:
    """The rows of ``column``, longer ones cut to ``context_size``, to the first row's length where it is None.

    Where the dataset has a column ``attention_mask`` (or ``documents``, as ``pretokenize`` writes it), what it leaves
    out is padding. Text moves to the front of its row, so that padding lies behind it. Rows of padding alone are left
    out, and counted in the log.

    Raises ``DataError`` for rows that are too short or hold other things than token ids, for ids that are not the
    tokenizer's, and for masks that are not 0 and 1 or leave out something between two tokens.
    """
    rows, masks = _read(dataset, column, max_rows)
    if not rows:
        raise DataError("the pretokenised dataset is empty")
    lengths = {len(row) for row in rows}
    size = context_size if context_size is not None else len(rows[0])
    if size < 1:
        raise DataError(
            f"column {column!r}: contexts of {counted(size, 'token')} hold nothing; give a larger context_size"
        )
    if min(lengths) < size:
        raise DataError(
            f"a pretokenised row has {counted(min(lengths), 'token')}, context_size is {size}; use "
            f"context_size={min(lengths)}"
        )
    if max(lengths) > size:
        logger.warning("pretokenised rows of up to %d are cut to %d", max(lengths), size)
    n_tokens = np.full(len(rows), size)
    if masks is not None:
        padding = np.full(size, _padding_id(tokenizer))
        texts = [
            _unmasked(row, mask, number)[:size] for number, (row, mask) in enumerate(zip(rows, masks, strict=True))
        ]
        rows = [np.concatenate([text, padding[len(text) :]]) for text in texts]
        n_tokens = np.array([len(text) for text in texts])
    ids = np.stack([row[:size] for row in rows])
    is_padding = np.arange(size) >= n_tokens[:, None]
    _check_ids(ids, is_padding, column, tokenizer)
    kept = n_tokens > 0
    if not kept.any():
        raise DataError(f"every row of the pretokenised dataset is padding; its column {MASK_COLUMN!r} keeps nothing")
    if not kept.all():
        logger.warning("%d pretokenised rows hold nothing but padding and are left out", int((~kept).sum()))
    return TokenRows(ids[kept].astype(np.int32), is_padding[kept], max(lengths))


def _read(dataset: Any, column: str, max_rows: int | None) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """The first rows of ids, and their masks where there are some."""
    names = dataset.column_names or ()
    mask = next((name for name in (MASK_COLUMN, DOCUMENTS) if name in names), None)
    columns = [column] if mask is None else [column, mask]
    if hasattr(dataset, "__len__"):
        table = [_from_arrow(dataset, name, max_rows) for name in columns]
    else:  # streamed
        streamed = [*itertools.islice(dataset, max_rows)]
        table = [[row[name] for row in streamed] for name in columns]
    rows = [_whole_numbers(row, column, number) for number, row in enumerate(table[0])]
    if mask == DOCUMENTS:
        return rows, _from_documents(rows, table[1])
    return rows, None if mask is None else [_mask(row, number) for number, row in enumerate(table[1])]


def _from_arrow(dataset: Any, column: str, max_rows: int | None) -> list[Any]:
    """The first rows of ``column``: arrays of integers where it holds lists of them, else Python values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    require_sound(dataset, column)
    rows: list[Any] = []
    for chunk in dataset.select_columns([column]).with_format("arrow")[:max_rows].column(column).chunks:
        values = chunk.flatten() if hasattr(chunk, "flatten") and chunk.null_count == 0 else None
        if values is None or values.null_count or not pa.types.is_signed_integer(values.type):
            rows += chunk.to_pylist()
            continue
        lengths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
        rows += np.split(values.to_numpy(), np.cumsum(lengths)[:-1])
    return rows


def _from_documents(rows: list[np.ndarray], documents: Any) -> list[np.ndarray] | None:
    """Masks from the numbers of documents that ``pretokenize`` writes; None where the column is something else."""
    values = [np.asarray(each) for each in documents]
    if all(each.dtype.kind == "i" and each.shape == row.shape for each, row in zip(values, rows, strict=True)):
        return [(each >= 0).astype(np.int64) for each in values]
    return None


def _mask(row: Any, number: int) -> np.ndarray:
    values = np.asarray(row)
    return _whole_numbers(values.astype(np.int64) if values.dtype.kind == "b" else row, MASK_COLUMN, number)


def _whole_numbers(row: Any, column: str, number: int) -> np.ndarray:
    """``row`` as int64 ``[n]``; ``DataError`` where it holds anything else."""
    where = f"column {column!r}, row {number}"
    if isinstance(row, (list, tuple)):
        for value in row:
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise DataError(f"{where}: expected whole numbers, got {_shown(value)}; {_AGAIN}")
            if not -(2**63) <= value < 2**63:
                raise DataError(f"{where}: {value} is no token id; {_AGAIN}")
        return np.array(row, dtype=np.int64)
    values = np.asarray(row)
    if values.ndim != 1:
        raise DataError(f"{where}: expected a list of token ids, got {_shown(row)}; {_AGAIN}")
    if values.dtype.kind == "i" or values.size == 0:
        return values.astype(np.int64)
    return _whole_numbers(values.tolist(), column, number)  # which names the value that is none


def _unmasked(row: np.ndarray, kept: np.ndarray, number: int) -> np.ndarray:
    """The tokens of ``row`` that its mask keeps; ``DataError`` where these do not lie together."""
    where = f"column {MASK_COLUMN!r}, row {number}"
    if len(kept) != len(row):
        raise DataError(f"{where}: {counted(len(kept), 'value')} for {counted(len(row), 'token')}; {_AGAIN}")
    other = kept[(kept != 0) & (kept != 1)]
    if len(other):
        raise DataError(f"{where}: expected 0 for padding and 1 for text, got {other[0]}; {_NO_MASK}")
    places = kept.nonzero()[0]
    if len(places) and places[-1] - places[0] + 1 != len(places):
        hole = places[0] + int(np.argmin(kept[places[0] :]))
        raise DataError(f"{where}: position {hole} is left out between two tokens, which no model can skip; {_NO_MASK}")
    return row[places]


def _padding_id(tokenizer: Any) -> int:
    """What stands at padding: the tokenizer's padding or end token, 0 where it has neither."""
    known = (getattr(tokenizer, f"{role}_token_id", None) for role in ("pad", "eos"))
    return next((int(token) for token in known if token is not None), 0)


def _check_ids(ids: np.ndarray, is_padding: np.ndarray, column: str, tokenizer: Any) -> None:
    """``DataError`` for an id in the text of a row that is out of the tokenizer's range."""
    most = _MOST_ID if tokenizer is None else len(tokenizer) - 1
    wrong = ((ids < 0) | (ids > most)) & ~is_padding
    if not wrong.any():
        return
    number, position = (int(each[0]) for each in wrong.nonzero())
    value = int(ids[number, position])
    known = "token ids are" if tokenizer is None else "the tokenizer's are"
    raise DataError(
        f"column {column!r}, row {number}: the pretokenised rows hold token id {value}, {known} 0 to {most}"
        + ("" if tokenizer is None else ": they were made by another one")
        + "; pass the tokenizer they were made with, or tokenise the text again"
    )


def _shown(value: Any) -> str:
    return f"the {type(value).__name__} {str(value)[:40]!r}"
