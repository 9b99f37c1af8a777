"""Files that are either whole or not there: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from monosema.core.errors import FileError
from monosema.core.plain import check_plain, dump_json, parse_json
from monosema.core.words import counted

_TEMPORARY = ".writing-"
MOST_JSON_BYTES = 2**26
"""No JSON file the library writes comes near it; reading one takes some forty times its size in memory."""


def looks_like_path(name: str) -> bool:
    """Whether ``name`` can be nothing but a path: the hub's names are ``name`` or ``owner/name``."""
    return name.startswith((".", "/", "~", os.sep)) or os.path.isabs(name) or name.count("/") > 1


def free_disk(path: str | os.PathLike[str]) -> int:
    """Bytes free where ``path`` is or would be made."""
    target = Path(path).absolute()
    return shutil.disk_usage(next(each for each in (target, *target.parents) if each.exists())).free


def write_atomically(path: str | os.PathLike[str], data: bytes | str | Iterable[memoryview]) -> None:
    """Write ``data``, whole or in pieces, to ``path`` so that a reader sees the old content or the new, never a part.

    Raises ``FileError`` (read-only folder, full disk); the old content then still stands.
    """
    target = Path(path)
    temporary = target.with_name(f"{_TEMPORARY}{os.getpid()}-{target.name}")
    pieces = [data.encode()] if isinstance(data, str) else [data] if isinstance(data, bytes) else data
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(target, error) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """``value`` as indented JSON, atomically; NaN and infinities become null."""
    write_atomically(path, dump_json(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON value in ``path``; ``FileError`` where it is missing, damaged, has a key twice, or is nothing that the
    library can have written: of more than ``MOST_JSON_BYTES``, nested deeply, with integers beyond 64 bits or text that
    is not Unicode. NaN and infinities become None."""
    return parse_json_file(read_text(path, MOST_JSON_BYTES), path)


def parse_json_file(text: str | bytes, where: object) -> Any:
    """The JSON value of a file's ``text``; ``FileError`` naming ``where``, as of ``read_json``."""
    try:
        value = parse_json(text)
        check_plain(value, finite=True)
    except ValueError as error:
        raise FileError(f"{where} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise FileError(f"{where} is not valid JSON: it is nested too deeply") from error
    return value


def read_text(path: str | os.PathLike[str], most_bytes: int | None = None) -> str:
    """The UTF-8 text in ``path``; ``FileError`` where it is missing, longer than ``most_bytes``, or something else."""
    try:
        size = require_regular(path)
        if most_bytes is not None and size > most_bytes:
            raise FileError(
                f"{path} has {counted(size, 'byte')}, at most {most_bytes:,} are read; is it the right file?"
            )
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text (byte {error.start})") from error


def require_regular(path: str | os.PathLike[str]) -> int:
    """Bytes in ``path``; ``FileError`` for a folder, a pipe (which would be waited on) or a device, ``OSError`` where
    nothing is there."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path} is a {'folder' if stat.S_ISDIR(status.st_mode) else 'pipe or device'}, not a file")
    return status.st_size


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends without an error.

    What stood at ``path`` is replaced only then. Files written inside are flushed to disk first.
    """
    target = Path(path)
    temporary = target.with_name(f"{_TEMPORARY}{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync_file(Path(folder) / name)
            _sync_folder(Path(folder))
        _replace_folder(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(target, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Delete a folder so that nobody ever sees a part of it under its name; what cannot be deleted is left."""
    target = Path(path)
    aside = target.with_name(f"{_TEMPORARY}{os.getpid()}-{target.name}")
    with contextlib.suppress(OSError):
        os.rename(target, aside)
        shutil.rmtree(aside, ignore_errors=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The checksum of a file's content, in hexadecimal; ``FileError`` where it cannot be read."""
    try:
        require_regular(path)
        with open(path, "rb", buffering=0) as file:
            digest, block = hashlib.sha256(), memoryview(bytearray(2**20))
            while n_read := file.readinto(block):
                digest.update(block[:n_read])
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def parse_sums(values: Any) -> dict[str, str]:
    """``values`` from JSON as checksums of files by their names below one folder; ``ValueError`` where they are
    something else, or a name leads elsewhere."""
    if not isinstance(values, dict):
        raise ValueError("it names no files")
    for name, checksum in values.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or set(name) & {"\\", "\0"} or not isinstance(checksum, str):
            raise ValueError(f"{name!r:.200} is no file of the folder")
    return values


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is what ``remove_leftovers`` deletes."""
    return name.startswith(_TEMPORARY)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what a killed process left half-written in ``folder``; a folder moved aside is put back."""
    for path in Path(folder).glob(f"{_TEMPORARY}*"):
        aside = re.fullmatch(re.escape(_TEMPORARY) + r"old-\d+-(.+)", path.name)
        if aside and not (path.parent / aside[1]).exists():
            os.rename(path, path.parent / aside[1])
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> FileError:
    """A ``FileError`` that says why ``path`` could not be written and what to do."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            advice = "free some space or choose another place with out=/--out"
        case errno.EEXIST | errno.ENOTDIR:
            file = next((each for each in (path, *path.parents) if each.is_file()), path)
            advice = f"{file} is a file where a folder is needed; move it, or choose another place with out=/--out"
        case errno.EISDIR:
            advice = "it is a folder where a file is needed; move it, or choose another name"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            advice = "allow writing there, or choose another place with out=/--out"
        case _:
            advice = "choose another place with out=/--out"
    return FileError(f"cannot write {path}: {error.strerror or error}; {advice} (what was there before is unchanged)")


def _replace_folder(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
        return
    old = target.with_name(f"{_TEMPORARY}old-{os.getpid()}-{target.name}")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(old, target)
        raise
    os.rename(old, temporary)  # under its old name, half-deleted, remove_leftovers could put it back
    shutil.rmtree(temporary, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        _sync_file(path)
