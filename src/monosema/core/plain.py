"""Plain values of files: one strict reader of JSON, one writer, and checks of single fields.

A key that stands twice in one mapping is refused. NaN and the infinities are not JSON: a file that holds them is read
with null in their place, and what is written has null in their place. Types are held to exactly: true is no number, 1
is no flag, "3" is no number, and 64.0 is no whole number, as no format read here writes whole numbers that way.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from monosema.core.errors import FileError

_MOST_DEPTH = 50
_MOST_INTEGER = 2**64
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?|[{}]', re.DOTALL)
_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


def parse_json(text: str | bytes) -> Any:
    """The value of JSON ``text``; NaN and infinities become None.

    Raises ``ValueError`` for text that is not JSON, or not UTF-8, and for a key that stands twice in one mapping, with
    its line; ``RecursionError`` where it is nested very deeply.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        return json.loads(text, parse_constant=lambda _: None, object_pairs_hook=_mapping)
    except _KeyTwiceError:
        key, line = _second_key(text)
        raise ValueError(twice(key, line)) from None


def twice(key: object, line: int) -> str:
    """The words for a key that stands twice in a mapping."""
    return f"the key {key!r:.200} stands twice, again in line {line}; leave one of the two out"


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """``value`` as JSON that any reader takes: NaN and infinities become null."""
    return json.dumps(without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


def without_nan(value: Any) -> Any:
    """A plain value with None in the place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    return [without_nan(each) for each in value] if isinstance(value, (list, tuple)) else value


def check_plain(value: Any, *, finite: bool = False) -> None:
    """``ValueError`` where lists and mappings are nested more than 50 deep, an integer has more than 64 bits, a text
    cannot be encoded or, where numbers must be ``finite``, one is not: what would break something further on."""
    level = [value]
    for _ in range(_MOST_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each)
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
            elif isinstance(each, str):
                each.encode()
            elif isinstance(each, int) and abs(each) >= _MOST_INTEGER:
                raise ValueError("it holds an integer of more than 64 bits")
            elif finite and isinstance(each, float) and not math.isfinite(each):
                raise ValueError("it holds a number that is too large for a float")
        if not inner:
            return
        level = inner
    raise ValueError("it is nested too deeply")


def is_same(value: object, expected: object) -> bool:
    """Whether ``value`` from a file is ``expected`` and of its type; to Python, True and 1.0 equal 1."""
    return type(value) is type(expected) and value == expected


def text_in(values: Mapping[str, Any], name: str, where: object) -> str | None:
    """The text ``values[name]``, None where it is missing or null; ``FileError`` for anything else."""
    return _typed(values, name, where, str)


def whole_in(values: Mapping[str, Any], name: str, where: object) -> int | None:
    """The whole number ``values[name]``, None where it is missing or null; ``FileError`` for anything else."""
    return _typed(values, name, where, int)


def flag_in(values: Mapping[str, Any], name: str, where: object) -> bool | None:
    """True or false at ``values[name]``, None where it is missing or null; ``FileError`` for anything else."""
    return _typed(values, name, where, bool)


def mapping_in(values: Mapping[str, Any], name: str, where: object) -> dict[str, Any]:
    """The mapping ``values[name]``, empty where it is missing or null; ``FileError`` for anything else."""
    return _typed(values, name, where, dict) or {}


def list_in(values: Mapping[str, Any], name: str, where: object) -> list[Any]:
    """The list ``values[name]``, empty where it is missing or null; ``FileError`` for anything else."""
    return _typed(values, name, where, list) or []


def texts_in(values: Mapping[str, Any], name: str, where: object) -> tuple[str, ...]:
    """The list of texts ``values[name]``, empty where it is missing or null; ``FileError`` for anything else."""
    found = list_in(values, name, where)
    for each in found:
        if type(each) is not str:
            raise FileError(f"{where}: {name} must be a list of texts, but holds {brief(each)}")
    return tuple(found)


def require_version(values: Mapping[str, Any], version: int, where: object) -> None:
    """``FileError`` unless ``values["version"]`` is the whole number ``version``."""
    if not is_same(values.get("version"), version):
        raise FileError(
            f"{where} is version {brief(values.get('version'))}, this library reads {version}; install a newer one"
        )


def brief(value: object) -> str:
    """A value in a message: its ``repr``, cut at 80 characters, and in words where that would be a large container."""
    if isinstance(value, (list, dict)):
        return "an empty " + type(value).__name__ if not value else f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _typed(values: Mapping[str, Any], name: str, where: object, kind: type) -> Any:
    value = values.get(name)
    if value is not None and type(value) is not kind:
        raise FileError(f"{where}: {name} must be {_KINDS[kind]}, got {brief(value)}")
    return value


class _KeyTwiceError(Exception):
    """A mapping has a key twice."""


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _KeyTwiceError
    return made


def _second_key(text: str) -> tuple[str, int]:
    """The first key that stands a second time in its mapping, and the line where it does."""
    keys: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            keys.append(set())
        elif token[0] == "}":
            keys.pop()
        elif token[1]:
            key = json.loads(token[0][: -len(token[1])])
            if key in keys[-1]:
                return key, text.count("\n", 0, token.start()) + 1
            keys[-1].add(key)
    raise AssertionError("there is such a key")
