"""Fields of configs that are written into records: what a record says of them, and which of them a file may decide.

A field is declared once, in its config. ``from_file`` marks one that is recorded and that a recorded file may decide,
``by_caller`` one that is recorded and that only the caller can decide again. A field without a mark is not recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from monosema.core.config import to_plain

_MARK = "monosema"


@dataclass(frozen=True)
class Field:
    """A field of a file that is used."""

    use: str
    """What it is used for."""
    refuses: Callable[[Any], str | None]
    """Why a value is not taken from a file; None for one that is."""


def from_file(use: str, refuses: Callable[[Any], str | None], **default: Any) -> Any:
    """A field that a recorded file may decide; ``use`` and ``refuses`` as of ``Field``, ``default`` as of
    ``dataclasses.field``."""
    return dataclasses.field(**default, metadata={_MARK: Field(use, refuses)})


def by_caller(**default: Any) -> Any:
    """A field that no file decides; the caller may give it where a run is opened again."""
    return dataclasses.field(**default, metadata={_MARK: None})


def file_fields(config: type) -> dict[str, Field]:
    """The fields that a recorded file may decide."""
    marks = {field.name: field.metadata.get(_MARK) for field in dataclasses.fields(config)}
    return {name: mark for name, mark in marks.items() if mark is not None}


def marked(config: type) -> tuple[str, ...]:
    """The fields that are given where a run is opened again, by a file or by the caller."""
    return tuple(field.name for field in dataclasses.fields(config) if _MARK in field.metadata)


def chosen(config: Any, names: Collection[str] | None = None) -> dict[str, Any]:
    """The fields (those of ``names``) that are not at their defaults, in the order of the config."""
    values = {}
    for field in dataclasses.fields(config):
        if names is None or field.name in names:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            value = getattr(config, field.name)
            if value != default:
                values[field.name] = value
    return values


def recorded(config: Any, always: Iterable[str], apart: Collection[str] = ()) -> dict[str, Any]:
    """What is recorded of ``config``, JSON-able: the fields ``always``, then every other marked field that is chosen.

    A field that is added later is not in ``always``: it is recorded only where it is chosen. So the records and
    fingerprints of what was made before it stay the same. Fields ``apart`` are recorded by their owner.
    """
    always = tuple(always)
    later = [name for name in marked(type(config)) if name not in (*always, *apart)]
    values: Mapping[str, Any] = {name: getattr(config, name) for name in always} | chosen(config, later)
    return {name: to_plain(value) for name, value in values.items()}
