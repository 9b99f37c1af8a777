"""Figures as lines of JSON in a file: what a run folder keeps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from monosema.core.errors import FileError
from monosema.core.files import cannot_write, require_regular, write_atomically
from monosema.core.plain import dump_json


@final
class JsonLines:
    """Appends a line ``{"step": step, ...}`` for each call of ``log``, and keeps the checksum of all lines.

    ``keep`` must be called before the first line is written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._n_bytes, self._sum = 0, hashlib.sha256()

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add one line; ``FileError`` where the file cannot be written."""
        content = (dump_json({"step": step, **figures}) + "\n").encode()
        try:
            with open(self.path, "ab") as file:
                file.write(content)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._n_bytes += len(content)
        self._sum.update(content)

    def flush(self) -> None:
        """See to it that what is logged is on the disk."""
        try:
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def record(self) -> dict[str, Any]:
        """How many bytes are logged, and their checksum."""
        return {"n_bytes": self._n_bytes, "sha256": self._sum.hexdigest()}

    def content(self) -> bytes:
        """What the file holds; nothing where there is none."""
        try:
            require_regular(self.path)
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror or error}") from error

    def keep(self, kept: bytes) -> None:
        """Make ``kept`` all that the file holds; further lines follow it."""
        if kept != self.content() or not self.path.exists():
            write_atomically(self.path, kept)
        self._n_bytes, self._sum = len(kept), hashlib.sha256(kept)
