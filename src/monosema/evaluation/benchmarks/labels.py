"""Labels of tokens that need no annotator: what each token of Python source is."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from monosema.core.errors import DataError

Span = tuple[int, int]
"""Of characters, the first and the one after the last."""


@dataclass(frozen=True)
class TokenLabels:
    """Yes-or-no labels of the tokens of a text."""

    names: tuple[str, ...]
    """What each says of a token."""
    spans: Callable[[str], Iterator[tuple[str, int, int]]]
    """The parts of a text that have a label: its name, the first character, the one after the last."""

    def of(self, text: str, offsets: Sequence[Span]) -> Tensor:
        """``[n_tokens, n_labels]`` bool for tokens that lie at ``offsets`` of ``text``, as its tokenizer gives them.

        A token has the labels of its first character that is not white space, or of its last where all are. One
        without a character has none.
        """
        characters = torch.zeros(len(text) + 1, len(self.names), dtype=torch.bool)
        for name, start, end in self.spans(text):
            characters[start:end, self.names.index(name)] = True
        return characters[torch.tensor([_place(text, *each) for each in offsets], dtype=torch.int64)]


def python_spans(text: str) -> Iterator[tuple[str, int, int]]:
    """The labelled parts of Python source, by the standard library's ``tokenize`` and ``ast``.

    Docstrings are ``docstring``; every other string literal is a ``string``, an f-string as a whole. ``keyword`` is a
    reserved word; ``function_name`` and ``class_name`` follow ``def`` and ``class``; ``call`` is a name before ``(``
    and ``attribute`` one after ``.`` that is not defined or called there; ``indentation`` is the white space before a
    statement; ``import`` a whole import statement. A character may have several labels.

    Raises ``DataError`` where ``text`` is not source that the running interpreter can parse.
    """
    if "\r" in text:
        raise DataError("Python source must have \\n for line ends to be labelled; replace \\r\\n and \\r by \\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in old code
            tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise DataError(f"the text that begins {text[:40]!r} is not Python source: {error}") from error
    lines = text.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]

    def place(line: int, column_bytes: int) -> int:
        before = lines[line - 1].encode("utf-8")[:column_bytes]
        return starts[line - 1] + len(before.decode("utf-8"))

    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                value = first.value
                docstrings.append((place(value.lineno, value.col_offset), _end(place, value)))
        elif isinstance(node, ast.arg):
            start = place(node.lineno, node.col_offset)
            yield "parameter", start, start + len(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield "import", place(node.lineno, node.col_offset), _end(place, node)
    for span in docstrings:
        yield "docstring", *span
    for name, start, end in _token_spans(tokens, starts):
        if name != "string" or not any(first <= start < last for first, last in docstrings):
            yield name, start, end


PYTHON_LABELS = TokenLabels(
    (
        "docstring",
        "string",
        "comment",
        "keyword",
        "function_name",
        "class_name",
        "parameter",
        "call",
        "attribute",
        "import",
        "number",
        "operator",
        "indentation",
    ),
    python_spans,
)
"""Of Python source; ``python_spans`` says what each means."""

LABEL_SETS = {"python": PYTHON_LABELS}
"""The built-in labels by name."""

_NO_TEXT = (tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
_WHOLE = {tokenize.COMMENT: "comment", tokenize.STRING: "string", tokenize.NUMBER: "number", tokenize.OP: "operator"}
_F_STARTS, _F_ENDS = (
    {getattr(tokenize, f"{kind}STRING_{side}", -1) for kind in "FT"} for side in ("START", "END")
)  # from Python 3.12 and 3.14 on, where these come in parts


def _token_spans(tokens: Sequence[tokenize.TokenInfo], starts: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    kept = [token for token in tokens if token.type not in _NO_TEXT]
    is_new_statement, depth, opened, before = True, 0, 0, ""
    for token, after in zip(kept, [*kept[1:], None], strict=True):
        start, end = (starts[line - 1] + column for line, column in (token.start, token.end))
        if token.type in _F_STARTS:
            opened, depth = (start if depth == 0 else opened), depth + 1
        elif token.type in _F_ENDS:
            depth -= 1
            if depth == 0:
                yield "string", opened, end
        if token.type == tokenize.COMMENT:
            yield "comment", start, end
            continue
        if is_new_statement and token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            yield "indentation", starts[token.start[0] - 1], start
        is_new_statement = token.type == tokenize.NEWLINE
        if depth == 0 and token.type in _WHOLE:
            yield _WHOLE[token.type], start, end
        elif depth == 0 and token.type == tokenize.NAME:
            name = _kind_of_name(token.string, before, "" if after is None else after.string)
            if name:
                yield name, start, end
        before = token.string


def _kind_of_name(name: str, before: str, after: str) -> str:
    if keyword.iskeyword(name):
        return "keyword"
    if before in ("def", "class"):
        return "function_name" if before == "def" else "class_name"
    if after == "(":
        return "call"
    return "attribute" if before == "." else ""


def _end(place: Callable[[int, int], int], node: ast.expr | ast.stmt) -> int:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return place(node.end_lineno, node.end_col_offset)


def _place(text: str, start: int, end: int) -> int:
    """The character whose labels the token has; the one behind the text, which has none, for an empty token."""
    if start >= end:
        return len(text)
    part = text[start:end]
    white = len(part) - len(part.lstrip())
    return start + white if white < len(part) else end - 1
