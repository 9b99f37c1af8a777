"""What a run's text is, in words: said where a run is to go on with another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosema.data.streamed import StreamedSplit
from monosema.data.tokens import TokenSplit

_WORDS = {
    "source": "the source",
    "n_documents": "the number of documents",
    "n_heldout_documents": "the number of held-out documents",
    "n_train_tokens": "the number of training tokens",
    "context_size": "the context size",
    "tokenizer": "the tokenizer",
    "tokenizer_size": "the tokenizer's number of tokens",
    "framing": "the tokens that frame documents",
    "heldout_fraction": "the share held out",
    "heldout_rule": "the rule that holds documents out",
}
"""What is compared, in this order."""

_FRAMING = ("begin_context", "begin_document", "separator", "end_context")


def describe_text(
    record: Mapping[str, Any], split: TokenSplit | StreamedSplit, tokenizer: Any
) -> dict[str, str | int | float | None]:
    """The facts by which people know the text of a stream, JSON-able; None for what is not known.

    ``record`` is that of ``Tokens``, ``split`` the side that is trained on.
    """
    framing = [record[mark] for mark in _FRAMING if mark in record]
    known: dict[str, Any] = {
        "source": record.get("source"),
        "n_documents": record.get("n_documents"),
        "n_heldout_documents": record.get("n_heldout_documents"),
        "n_train_tokens": split.n_tokens if isinstance(split, TokenSplit) else None,
        "context_size": split.context_size,
        "tokenizer": str(getattr(tokenizer, "name_or_path", "") or "") or None,
        "tokenizer_size": None if tokenizer is None else len(tokenizer),
        "framing": str(framing) if framing else None,
        "heldout_fraction": record.get("heldout_fraction"),
        "heldout_rule": str(record["heldout_rule"]) if "heldout_rule" in record else None,
    }
    assert known.keys() == _WORDS.keys()
    return known


def other_text(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """The message for a stream whose token ids are others than those that a run was begun with.

    ``before`` and ``now`` are of ``describe_text``; None where an older version wrote no such description.
    """
    return f"the text differs from the one this run was begun with: {_what(before, now)}; {_REMEDY}"


_REMEDY = "give the same text to go on, or another out= (--out) for a new run"


def _what(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    if before is None:
        return (
            "the run is of an older version, which did not write down what the text was and divided plain files and "
            "texts of few documents otherwise; that version can finish it"
        )
    different = {name: words for name, words in _WORDS.items() if before.get(name) != now[name]}
    rule = different.pop("heldout_rule", None)
    lines = [
        f"{words} was {_shown(before.get(name))}, now it is {_shown(now[name])}" for name, words in different.items()
    ]
    if rule is not None and not lines:
        lines.append("other documents are held out")
    return ", ".join(lines) or "its words are others, though it has as many documents and tokens"


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    return f"{value:,}" if isinstance(value, int) else repr(value) if isinstance(value, str) else str(value)
