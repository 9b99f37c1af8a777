"""What the files of a run folder that are written once should hold: ``checksums.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from monosema.core.errors import FileError
from monosema.core.files import parse_sums, read_json, sha256_of, write_json

FILE = "checksums.json"


class Checksums:
    """sha256 of files in ``folder`` by name; one that is recorded was written to its end."""

    def __init__(self, folder: Path):
        self._folder = folder

    def record(self, contents: Mapping[str, str]) -> None:
        """Note what files will hold, before they are written."""
        found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
        self._write({**self._read(), **found})

    def record_written(self, *names: str) -> None:
        """Note what files, or all files of folders, hold."""
        self._write({**self._read(), **{file: sha256_of(self._folder / file) for file in self._files(names)}})

    def forget(self, *names: str) -> None:
        """Files and folders that are about to be written anew; until they are recorded they do not count as there."""
        kept = {file: each for file, each in self._read().items() if file.split("/")[0] not in names}
        self._write(kept)

    def matches(self, name: str, content: str) -> bool:
        """Whether the file should hold just this."""
        return self._read().get(name) == hashlib.sha256(content.encode()).hexdigest()

    def is_recorded(self, name: str) -> bool:
        """Whether the file, or the folder, was written to its end."""
        return any(file.split("/")[0] == name for file in self._read())

    def damaged(self, name: str = "") -> list[str]:
        """What is wrong with the files that are recorded, or with one (or a folder's); a line for each."""
        lines = []
        for file, expected in self._read().items():
            if name not in ("", file.split("/")[0]):
                continue
            try:
                if sha256_of(self._folder / file) != expected:
                    lines.append(f"{self._folder / file} is not what was written")
            except FileError as error:
                lines.append(str(error))
        return lines

    @property
    def is_readable(self) -> bool:
        """Whether the record itself is there and whole."""
        return self._found() is not None

    def _read(self) -> dict[str, str]:
        return self._found() or {}

    def _found(self) -> dict[str, str] | None:
        try:
            values = read_json(self._folder / FILE)
            files = parse_sums(values["files"])
            return files if values["sha256"] == _checksum(files) else None
        except (FileError, TypeError, KeyError, ValueError):
            return None

    def _write(self, files: dict[str, str]) -> None:
        write_json(self._folder / FILE, {"files": files, "sha256": _checksum(files)})

    def _files(self, names: tuple[str, ...]) -> list[str]:
        files: list[str] = []
        for name in names:
            path = self._folder / name
            inside = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            files += [each.relative_to(self._folder).as_posix() for each in inside]
        return files


def _checksum(files: object) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
