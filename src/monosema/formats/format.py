"""``Format``: what a file format of dictionaries is, to those who load and save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from monosema.formats.spec import DictionarySpec


@dataclass(frozen=True)
class Fit:
    """Whether a format can hold a dictionary; false where there is a reason against it."""

    reason: str | None = None
    """Why it cannot, as the end of a sentence; None where it can."""

    def __bool__(self) -> bool:
        return self.reason is None


@runtime_checkable
class Format(Protocol):
    """A layout of files that hold one trained dictionary.

    ``read`` and ``write`` pass a ``DictionarySpec``; nothing else is known of a format outside its own file. A format
    that is read only refuses every dictionary in ``can_hold``.
    """

    @property
    def name(self) -> str:
        """What ``save(..., format=...)`` and error texts call it. What it recorded is kept in metadata by this name."""

    @property
    def files(self) -> Mapping[str, str]:
        """Its files by name or pattern (``layer_*.safetensors``), each with what is used of it.

        These are fetched from the hub, and a dictionary of this format that consists of them may be saved over. The
        first one is the file that shows a user where a dictionary is.
        """

    def claims(self, place: Path) -> bool:
        """Whether the folder or file ``place`` is of this format. Raises nothing, whatever the files hold."""

    def read(self, place: Path) -> DictionarySpec:
        """The dictionary in ``place``; ``FileError`` where files are missing, damaged or do not fit together."""

    def can_hold(self, spec: DictionarySpec) -> Fit:
        """Whether what ``spec`` computes can be written."""

    def write(self, spec: DictionarySpec, folder: Path) -> None:
        """Write ``spec``, which the format can hold, into the existing empty ``folder``."""
