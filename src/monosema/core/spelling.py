"""What people type: ``1e6`` for a whole number, and names in any case, with or without a number (``TopK(16)``).

This is for options of the caller. Files of others are held to exact types (``core/plain.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from monosema.core.errors import ConfigError

_MOST_EXACT = 2**53
"""Above it, floats are not exact, so that nobody can say which whole number was meant."""
_NAMED = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(\s*([^()]*?)\s*\)|:\s*(\S+))?\s*")


def with_whole_numbers(value: Any) -> Any:
    """``value`` with ints in the place of floats that have no fraction (1e6), inside lists, tuples and mappings too."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _MOST_EXACT else value
    if isinstance(value, Mapping):
        return {key: with_whole_numbers(each) for key, each in value.items()}
    return type(value)(map(with_whole_numbers, value)) if type(value) in (list, tuple) else value


def whole_number(text: str) -> int:
    """The whole number in ``text``, as ``1000000`` or ``1e6``; ``ValueError`` for anything else."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            value = with_whole_numbers(kind(text))
            if isinstance(value, int):
                return value
    raise ValueError(f"expected a whole number, got {text!r:.80}")


def matching_name(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that ``name`` is but for case, ``_`` and ``-``; None where there is none."""
    return next((each for each in names if _folded(each) == _folded(name)), None)


def spelled_out(plain: Any, configs: Mapping[str, type | None]) -> Any:
    """``{"kind": "TopK", "k": 16}`` for ``TopK(16)`` or ``topk:16``, and the exact name of a kind in another case.

    ``configs`` has the kinds by name; one may be None, which the result then is. Anything else is left as it is.
    Raises ``ConfigError`` for a number that the kind does not take by position.
    """
    if isinstance(plain, Mapping) and isinstance(plain.get("kind"), str):
        return {**plain, "kind": matching_name(plain["kind"], configs) or plain["kind"]}
    found = _NAMED.fullmatch(plain) if isinstance(plain, str) else None
    name = None if found is None else matching_name(found[1], configs)
    if found is None or name is None:
        return plain
    kind, number = configs[name], found[2] or found[3]
    if kind is None:
        return None
    positional = [field.name for field in dataclasses.fields(kind) if field.init and not field.kw_only]
    if number and not positional:
        raise ConfigError(f"{name} takes no number behind its name, got {plain!r:.80}; give its options by name")
    return {"kind": name, **({positional[0]: _number(number)} if number else {})}


def _number(text: str) -> int | float:
    try:
        value: int | float = with_whole_numbers(float(text))
    except ValueError:
        raise ConfigError(f"expected a number behind the name, as in TopK(16), got {text!r:.80}") from None
    return value


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
