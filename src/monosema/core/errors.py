"""Errors shown to users: what was expected, what came, how to fix it.

All are ``ValueError`` so that callers need no import of ours; ``assert`` is for our own mistakes.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable

from monosema.core.printable import MOST_MESSAGE, terminal_text


class UserError(ValueError):
    """The input cannot be used as it is; the message names the fix.

    Messages quote names, keys and texts of files. Control characters and what else cannot be seen are shown by name,
    and very long messages are cut in the middle, so that any of them can be printed.
    """

    def __init__(self, message: object = ""):
        super().__init__(terminal_text(str(message), MOST_MESSAGE))


class ConfigError(UserError):
    """An option is unknown, has the wrong type, or conflicts with another."""


class CapabilityError(ConfigError):
    """A dictionary cannot do what is asked of it, whatever the options; the message names what can."""


class UnknownNameError(UserError):
    """A name (hook, option, format) that does not exist; the nearest existing ones are offered."""


class UnknownArgumentError(UnknownNameError, TypeError):
    """A call has an option that does not exist; ours by another library's name, or the nearest, is offered."""


class ShapeError(UserError):
    """A tensor has another shape than the operation needs."""


class DataError(UserError):
    """Text, tokens or activations are missing, too short, or not finite."""


class FileError(UserError):
    """A file or folder cannot be read or written as asked; nothing on disk was changed."""


class OutOfMemoryError(UserError):
    """The device's memory is too small for what was asked; the message names options that need less."""


class MissingExtraError(UserError):
    """An optional dependency is not installed; the message names the extra to install."""


_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "failed to allocate",
    "unable to allocate",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system, torch, NumPy or Arrow said with ``error`` that there is no memory left."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(words in text for words in _NO_MEMORY)


def first_line(error: Exception) -> str:
    """What ``error`` says first, for a message that goes on."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def nearest_names(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """The at most ``n`` options that look most like ``name``, best first."""
    return difflib.get_close_matches(name, list(options), n=n, cutoff=0.5)


def refuse_misspelling(kind: str, name: str, builtin: str) -> None:
    """Raise ``UnknownNameError`` where ``name``, which would be looked up on the hub, is nearly the ``builtin`` one.

    Names with a slash, and of files and folders that are there, are taken at their word.
    """
    if name == builtin or "/" in name or os.path.exists(name):
        return
    if difflib.get_close_matches(name.lower(), [builtin], cutoff=0.75):
        raise UnknownNameError(
            f"unknown {kind} {name!r}; did you mean {builtin!r}? If not, give a local path or the hub's full name "
            "(owner/name)"
        )


def unknown_name(kind: str, name: str, options: Iterable[str]) -> UnknownNameError:
    """An error for the unknown ``name`` of some ``kind`` ("hook name", "option"), offering the nearest options."""
    known = list(options)
    near = nearest_names(name, known)
    if near:
        hint = "did you mean " + " or ".join(repr(option) for option in near) + "?"
    else:
        shown = ", ".join(repr(option) for option in known[:12])
        hint = f"known: {shown}" + (" …" if len(known) > 12 else "")
    return UnknownNameError(f"unknown {kind} {name!r}; {hint}")
