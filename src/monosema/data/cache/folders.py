"""Where a cache lies: a folder on this machine, or one behind an fsspec URL. A file is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast, final, runtime_checkable

from monosema.core.errors import FileError, MissingExtraError, UserError, first_line
from monosema.core.files import (
    cannot_write,
    free_disk,
    parse_json_file,
    read_json,
    remove_leftovers,
    require_regular,
    write_atomically,
)
from monosema.core.plain import dump_json


@runtime_checkable
class Readable(Protocol):
    """An open file, closed at the end of a ``with`` block."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...

    def __enter__(self) -> Readable: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> Any: ...


@runtime_checkable
class CacheFolder(Protocol):
    """Files of one folder, by name; ``str()`` of it is the place, for messages."""

    def exists(self, file: str) -> bool: ...

    def size(self, file: str) -> int | None:
        """Bytes of ``file``; None where it is missing."""

    def names(self) -> list[str]:
        """The files there; none where the folder is missing."""

    def open(self, file: str) -> Readable:
        """For one sequential read; raises ``OSError``."""

    def read_json(self, file: str) -> Any: ...

    def write(self, file: str, content: bytes | str | Iterable[memoryview]) -> None:
        """Write ``file`` whole or not at all; ``FileError`` where that cannot be."""

    def remove(self, file: str) -> None: ...

    def free_bytes(self) -> int | None:
        """Room that is left; None where nobody can say."""

    def remove_leftovers(self) -> None:
        """Delete what killed writers left half-written."""


def open_folder(where: str | os.PathLike[str]) -> CacheFolder:
    """The folder at a path or URL; neither need exist. ``MissingExtraError`` where a URL's package is not installed."""
    text = os.fspath(where)
    if "://" not in text:
        return LocalFolder(Path(text))
    return LocalFolder(Path(text.removeprefix("file://"))) if text.startswith("file://") else RemoteFolder(text)


def require_room(folder: CacheFolder, n_bytes: int) -> None:
    """Raise ``FileError`` where ``n_bytes`` more do not fit on the folder's disk, as far as that is known."""
    free = folder.free_bytes()
    if free is not None and n_bytes > free:
        raise FileError(
            f"{n_bytes / 2**30:.2f} GiB more are needed, {folder} has {free / 2**30:.2f} GiB free; free some, choose "
            "another place, lower tokens, or store int8"
        )


def write_json(folder: CacheFolder, file: str, value: Any) -> None:
    """``value`` as indented JSON; NaN and infinities become null."""
    folder.write(file, dump_json(value, indent=2) + "\n")


@final
class LocalFolder:
    """A folder on this machine; files are written under a temporary name, flushed, and renamed."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self, file: str) -> bool:
        return (self.path / file).exists()

    def size(self, file: str) -> int | None:
        path = self.path / file
        return path.stat().st_size if path.exists() else None

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []

    def open(self, file: str) -> Readable:
        require_regular(self.path / file)
        opened = open(self.path / file, "rb", buffering=0)  # noqa: SIM115  # closed by who asked for it
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return opened

    def read_json(self, file: str) -> Any:
        return read_json(self.path / file)

    def write(self, file: str, content: bytes | str | Iterable[memoryview]) -> None:
        write_atomically(self.path / file, content)

    def remove(self, file: str) -> None:
        try:
            (self.path / file).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path / file, error) from error

    def free_bytes(self) -> int | None:
        return free_disk(self.path)

    def remove_leftovers(self) -> None:
        remove_leftovers(self.path)


@final
class RemoteFolder:
    """A folder behind an fsspec URL (``s3://bucket/run``, ``memory://run``): a file is put there as one object."""

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        try:
            self._files, self._path = url_to_fs(url)
        except ImportError as error:
            raise MissingExtraError(
                f"{url} needs a package that is not installed ({first_line(error)}): pip install 'monosema[remote]'"
            ) from error
        except ValueError as error:
            raise FileError(f"{url} cannot be opened: {first_line(error)}") from error
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def exists(self, file: str) -> bool:
        return self.size(file) is not None

    def size(self, file: str) -> int | None:
        self._files.invalidate_cache()  # other writers may have put it there since
        try:
            return int(self._files.info(self._at(file))["size"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(file, error) from error

    def names(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            return sorted(each.rstrip("/").rpartition("/")[2] for each in self._files.ls(self._path, detail=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreadable("", error) from error

    def open(self, file: str) -> Readable:
        return cast(Readable, self._files.open(self._at(file), "rb"))

    def read_json(self, file: str) -> Any:
        try:
            content = self._files.cat_file(self._at(file))
        except OSError as error:
            raise self._unreadable(file, error) from error
        return parse_json_file(content, f"{self}/{file}")

    def write(self, file: str, content: bytes | str | Iterable[memoryview]) -> None:
        if isinstance(content, str):
            content = content.encode()
        whole = content if isinstance(content, bytes) else b"".join(content)
        try:
            self._files.makedirs(self._path, exist_ok=True)
            self._files.pipe_file(self._at(file), whole)
        except OSError as error:
            raise FileError(f"cannot write {self}/{file}: {error.strerror or first_line(error)}") from error

    def remove(self, file: str) -> None:
        if self.exists(file):
            self._files.rm_file(self._at(file))

    def free_bytes(self) -> int | None:
        return None

    def remove_leftovers(self) -> None:
        return

    def _at(self, file: str) -> str:
        return f"{self._path.rstrip('/')}/{file}"

    def _unreadable(self, file: str, error: OSError) -> UserError:
        return FileError(f"cannot read {self}/{file}: {error.strerror or first_line(error)}")
