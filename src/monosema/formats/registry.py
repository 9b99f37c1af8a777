"""The formats that are known, and which of them reads or writes a dictionary.

A new format of the library is one file beside this one and one entry in ``_FOREIGN``. Another package adds its own with
``register``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monosema.core.errors import ConfigError, FileError, unknown_name
from monosema.core.plain import brief
from monosema.formats import native, saelens
from monosema.formats.format import Format
from monosema.formats.spec import DictionarySpec

_OWN: tuple[Format, ...] = (saelens.FORMAT, native.FORMAT)
"""Those that a dictionary is saved in by default: the first one that can hold it."""
_FOREIGN: tuple[Format, ...] = ()
"""Those that are written only where asked for by name."""
_registered: list[Format] = []


def register(new: Format) -> None:
    """Make ``load`` read the format ``new``, and ``save`` write it where it is asked for by name.

    A format that is registered is asked before the library's own whether a folder is of it, the newest one first.
    Raises ``ConfigError`` where its name is taken, or it names no files.
    """
    if any(each.name == new.name for each in formats()):
        raise ConfigError(f"a format named {new.name!r} is known already; give the new one another name")
    if not new.files:
        raise ConfigError(f"the format {new.name!r} names no files; its files must hold at least one name or pattern")
    _registered.append(new)


def unregister(name: str) -> None:
    """Forget a format that ``register`` was given."""
    known = {each.name: each for each in _registered}
    if name not in known:
        raise unknown_name("registered format", name, known)
    _registered.remove(known[name])


def formats() -> tuple[Format, ...]:
    """All formats, in the order in which they are asked whether a folder is of them."""
    return (*reversed(_registered), *_FOREIGN, *reversed(_OWN))


def claimant(place: Path) -> Format | None:
    """The format of the dictionary in the folder or file ``place``; None where no format claims it."""
    return next((each for each in formats() if each.claims(place)), None)


def writer(spec: DictionarySpec, name: str | None = None) -> Format:
    """The format that ``spec`` is written in: the one called ``name``, or the default.

    Raises ``UnknownNameError`` for a name that no format has, and ``ConfigError`` where the format cannot hold the
    dictionary, with the reason and the formats that can.
    """
    known = {each.name: each for each in formats()}
    if name is not None and name not in known:
        raise unknown_name("format", name, known)
    asked = _OWN if name is None else (known[name],)
    reasons = {}
    for each in asked:
        fit = each.can_hold(spec)
        if fit:
            return each
        reasons[each.name] = fit.reason
    able = [repr(each.name) for each in formats() if each not in asked and each.can_hold(spec)]
    said = "; ".join(f"the format {each!r} cannot hold this dictionary: {reason}" for each, reason in reasons.items())
    fix = f"use {' or '.join(f'format={each}' for each in able)}" if able else "no other format can hold it either"
    raise ConfigError(f"{said}; {fix}")


def may_replace(folder: Path) -> Iterable[str]:
    """The names or patterns of files in ``folder`` that saving a dictionary there may delete."""
    there = claimant(folder)
    return {name for each in (*_OWN, there) if each is not None for name in each.files}


def is_one_of(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's ``name`` is one of ``patterns``."""
    return any(fnmatch.fnmatchcase(name, each) for each in patterns)


def wanted_files() -> tuple[str, ...]:
    """The names or patterns of files that a dictionary of any format may consist of."""
    return tuple(dict.fromkeys(name for each in formats() for name in each.files))


def telling_files() -> str:
    """The files that show where a dictionary is, for an error text: ``cfg.json``, or ``a.npz or cfg.json``."""
    return " or ".join(dict.fromkeys(next(iter(each.files)) for each in formats()))


def check_records(metadata: Mapping[str, Any], where: object) -> None:
    """``FileError`` where what a format recorded, under its name in ``metadata``, is no mapping."""
    for each in formats():
        record = metadata.get(each.name)
        if record is not None and not isinstance(record, Mapping):
            raise FileError(f"{where}: {each.name} must be a mapping, got {brief(record)}")
