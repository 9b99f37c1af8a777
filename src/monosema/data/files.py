"""Files of text, here or behind any URL that fsspec knows: which ones a name stands for, and their bytes as a stream.

``TextFile.open`` decompresses on the way, a buffer at a time, and turns what goes wrong while reading into errors that
name the file.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import posixpath
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from monosema.core.errors import DataError, FileError, MissingExtraError, first_line
from monosema.core.files import require_regular

PLAIN_SUFFIXES = frozenset({".txt", ".md", ".rst", ".py"})
RECORD_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".parquet"})
COMPRESSED_SUFFIXES = frozenset({".gz", ".zst"})
TEXT_SUFFIXES = PLAIN_SUFFIXES | RECORD_SUFFIXES
"""Files that are read where a folder is given; also compressed. A file named by itself is read whatever its name."""

MOST_GROWTH, LEAST_BOMB = 200, 2**26
"""Decompressing a file stops where it has given so many times the bytes read, and no fewer than ``LEAST_BOMB``: text
grows some ten times."""

_BUFFER = 2**18


@runtime_checkable
class ByteStream(Protocol):
    """What is read of an open file, whoever opened it."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; none at the end."""

    def readline(self, size: int = -1, /) -> bytes:
        """The bytes up to and with the next line end."""


@dataclass(frozen=True)
class TextFile:
    """One file."""

    name: str
    """Its path below the folder, or below the fixed part of the glob."""
    label: str
    """Path or URL, for messages."""
    path: str
    """Where it is in ``filesystem``."""
    filesystem: Any
    """An fsspec filesystem."""

    @property
    def suffix(self) -> str:
        """What kind of file it is, compression aside: ``.jsonl`` of ``a.jsonl.zst``."""
        return _kind(self.path)[0]

    @property
    def is_compressed(self) -> bool:
        """Whether its bytes are compressed as a whole."""
        return bool(_kind(self.path)[1])

    @contextlib.contextmanager
    def open(self) -> Iterator[ByteStream]:
        """Its bytes, decompressed as they are read; ``FileError`` naming it for whatever goes wrong meanwhile."""
        compression = _kind(self.path)[1]
        try:
            if not is_remote(self.label):
                require_regular(self.path)
            with self.filesystem.open(self.path, "rb") as raw:
                if compression and not raw.read(1):
                    raise FileError(f"{self.label} is empty, so no {compression} file; it may be half-written")
                if compression:
                    raw.seek(0)
                yield _decompressed(raw, compression, self.label) if compression else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.damaged("gzip", error) from error
        except OSError as error:
            if compression == ".zst" and error.errno is None:  # what the decompressor says; the system has numbers
                raise self.damaged("Zstandard", error) from error
            raise FileError(f"cannot read {self.label}: {error.strerror or first_line(error)}") from error

    def damaged(self, kind: str, error: Exception) -> FileError:
        """An error for a file that is not what its name says."""
        return FileError(
            f"cannot read {self.label}: the {kind} file is damaged or half-written ({first_line(error)}); get it again"
        )


def find_files(source: str | Path) -> list[TextFile]:
    """The files that a path, a folder, a glob or a URL of these stands for, in the order of their paths.

    Raises ``FileError`` where there are none, ``DataError`` for a folder without files of text.
    """
    filesystem, path = filesystem_of(source)
    is_url = is_remote(source)

    def file(found: str, root: str) -> TextFile:
        name = posixpath.relpath(found, root) if root else found
        return TextFile(name, filesystem.unstrip_protocol(found) if is_url else found, found, filesystem)

    with _reading(source):
        if is_glob(source) and not filesystem.exists(path):
            root = _fixed_part(path)
            found = sorted(each for each in filesystem.glob(path) if filesystem.isfile(each))
            if not found:
                raise FileError(f"no file matches {source}; mind that * stops at folders and ** does not")
            return [file(each, root) for each in found]
        if not _is_web(path) and filesystem.isdir(path):
            files = [file(each, path) for each in filesystem.find(path) if _is_text(each)]
            if not files:
                raise DataError(f"{source} holds no text files ({', '.join(sorted(TEXT_SUFFIXES))}; also .gz, .zst)")
            return sorted(files, key=lambda each: PurePosixPath(each.path))
        if not filesystem.exists(path):
            raise FileError(f"no file or folder {source}")
    return [TextFile(posixpath.basename(path), str(source), path, filesystem)]


def holds_any(folder: str | Path, names: Iterable[str]) -> bool:
    """Whether ``folder`` is one and holds a file of one of the ``names``."""
    if has_text_suffix(str(folder)):
        return False
    filesystem, path = filesystem_of(folder)
    with _reading(folder):
        return any(filesystem.exists(f"{path}/{name}") for name in names)


@contextlib.contextmanager
def _reading(source: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror or first_line(error)}") from error


def filesystem_of(source: str | Path) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path inside it; ``MissingExtraError`` for an unknown scheme."""
    import fsspec

    if not is_remote(source):
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(source))
    try:
        filesystem, path = fsspec.core.url_to_fs(str(source))
    except ImportError as error:
        raise MissingExtraError(
            f"{source}: {first_line(error)}; pip install 'monosema[remote]' has http and s3, other schemes have "
            "packages of their own"
        ) from error
    except ValueError as error:
        raise FileError(f"{source} is no URL that can be read ({first_line(error)})") from error
    return filesystem, path


def is_remote(source: str | Path) -> bool:
    """Whether ``source`` is a URL."""
    return "://" in str(source)


def is_glob(source: str | Path) -> bool:
    """Whether ``source`` is a pattern of names; a question mark in a URL is not, it starts a query."""
    return isinstance(source, str) and any(each in source for each in ("*[" if is_remote(source) else "*?["))


def has_text_suffix(name: str) -> bool:
    """Whether ``name`` ends as files of text do."""
    suffix, compression = _kind(name)
    return suffix in TEXT_SUFFIXES or bool(compression)


def _is_text(path: str) -> bool:
    suffix, compression = _kind(path)
    return suffix in TEXT_SUFFIXES or (bool(compression) and not suffix)


def _kind(path: str) -> tuple[str, str]:
    """What a file holds and how it is compressed, as suffixes; either may be empty."""
    pure = PurePosixPath(path.partition("?")[0] if _is_web(path) else path)
    if pure.suffix in COMPRESSED_SUFFIXES:
        return PurePosixPath(pure.stem).suffix, pure.suffix
    return pure.suffix, ""


def _is_web(path: str) -> bool:
    """Whether ``path`` is of fsspec's http filesystem, whose paths are whole URLs; it has no folders but pages."""
    return path.startswith(("http://", "https://"))


def _fixed_part(pattern: str) -> str:
    """The folder above the first wildcard."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if any(each in part for each in "*?["))
    return "/".join(parts[:first])


def _decompressed(raw: Any, compression: str, label: str) -> ByteStream:
    if compression == ".gz":
        return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=raw), raw, label), _BUFFER)
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return io.BufferedReader(_Bounded(stream, raw, label), _BUFFER)


class _Bounded(io.RawIOBase):
    """``inner``, which decompresses ``raw``, as long as it does not grow as no text does."""

    def __init__(self, inner: Any, raw: Any, label: str):
        self._inner, self._raw, self._label, self._n_bytes = inner, raw, label, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        n_read: int = self._inner.readinto(buffer)
        self._n_bytes += n_read
        if self._n_bytes > max(LEAST_BOMB, MOST_GROWTH * self._raw.tell()):
            raise FileError(
                f"{self._label} decompresses to more than {MOST_GROWTH} times its size; decompress it yourself if it "
                "is what it should be"
            )
        return n_read
