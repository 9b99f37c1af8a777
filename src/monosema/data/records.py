"""The text of one record: which column holds it, and what else may stand there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monosema.core.errors import DataError
from monosema.data.chat import CONVERSATION_COLUMNS, conversation_text, is_conversation

TEXT_COLUMNS = ("text", "content", "problem")
"""Where text is looked for, in this order, before conversations are."""


class RecordText:
    """Finds the text of records: in ``column``, or in the first column that usually holds some."""

    def __init__(self, column: str | None, tokenizer: Any) -> None:
        self.column = column
        self._tokenizer = tokenizer

    def __call__(self, record: Any, where: str) -> str:
        """The text of a record, of a conversation, or of what is text already; ``DataError`` naming ``where``."""
        if isinstance(record, str):
            return record
        if is_conversation(record):
            return conversation_text(record, self._tokenizer, where)
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected text or a record with a text column, got a {type(record).__name__}")
        name = self.column_among(list(record), where)
        value: Any = record.get(name)
        if is_conversation(value):
            return conversation_text(value, self._tokenizer, f"{where}: column {name!r}")
        if not isinstance(value, str):
            raise DataError(f"{where}: column {name!r} holds a {type(value).__name__}, expected text{_hint(value)}")
        return value

    def column_among(self, names: Sequence[str], where: str) -> str:
        """The column to read where there are these; ``DataError`` where none is right."""
        if self.column is not None:
            if self.column not in names:
                raise DataError(f"{where}: no column {self.column!r} among {_listed(names)}; name another with column=")
            return self.column
        for name in (*TEXT_COLUMNS, *CONVERSATION_COLUMNS):
            if name in names:
                return name
        raise DataError(f"{where}: no text column among {_listed(names)}; name it with column=")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _hint(value: Any) -> str:
    if not isinstance(value, (list, tuple)):
        return ""
    if value and isinstance(value[0], int):
        return "; token ids are read from a Hugging Face dataset: datasets.Dataset.from_list(...) makes one of records"
    return " or a list of {role, content} messages"
