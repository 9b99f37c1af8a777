"""The documents in a file: plain text, JSON lines, a JSON list, Parquet; each read as a stream."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monosema.core.errors import DataError
from monosema.core.plain import parse_json
from monosema.data.files import ByteStream, TextFile, is_remote
from monosema.data.records import RecordText

DOCUMENT_SEPARATOR = "<|endoftext|>"
"""Plain text files are cut here, as the TinyStories and OpenWebText dumps are written."""

PIECE_CHARACTERS = 20_000
"""A longer document from a plain text file is cut into pieces of this size at line ends, so that a corpus of one
long file can be split and shuffled as well. Neighboring pieces may be on different sides of the split."""

MOST_JSON_BYTES = 2**28
"""A line of JSON lines, or a JSON list, with more bytes is refused: it would fill the memory."""

_BUFFER = 2**20
_ROWS = 512


@dataclass(frozen=True)
class Document:
    """One text with the name that decides on its split."""

    name: str
    """A hash of the text; of a module of the standard library its own name."""
    text: str
    """What is tokenised."""


def named_by_text(text: str) -> Document:
    """A document that is called by the sha256 of its text."""
    return Document(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), text)


def documents_in(file: TextFile, text_of: RecordText) -> Iterator[Document]:
    """The documents of ``file``, in order.

    Raises ``DataError`` (not UTF-8, not JSON, no text column) and ``FileError`` (unreadable, damaged), both naming the
    file, and the line where there are lines.
    """
    readers = {".parquet": _parquet, ".json": _json_list, ".jsonl": _json_lines, ".ndjson": _json_lines}
    reader = readers.get(file.suffix)
    texts = _plain(file) if reader is None else reader(file, text_of)
    yield from map(named_by_text, texts)


def _plain(file: TextFile) -> Iterator[str]:
    if not _has_separator(file):
        with file.open() as stream:
            yield from _pieces(_decoded(stream, file))
        return
    with file.open() as stream:
        for part in _parts(_decoded(stream, file)):
            text = part.strip("\n")
            if text.strip():
                yield text


def _has_separator(file: TextFile) -> bool:
    """Whether documents are parted inside ``file``: it is not cut into pieces then, so it must be known beforehand."""
    wanted = DOCUMENT_SEPARATOR.encode()
    with file.open() as stream:
        seen = b""
        while chunk := stream.read(_BUFFER):
            seen = seen[1 - len(wanted) :] + chunk  # reads may be shorter than the separator
            if wanted in seen:
                return True
    return False


def _decoded(stream: ByteStream, file: TextFile) -> Iterator[str]:
    """Strict UTF-8, as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_bytes, line = 0, 1
    while True:
        chunk = stream.read(_BUFFER)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            at = n_bytes - pending + error.start
            raise DataError(f"{file.label}, line {line}: not UTF-8 text (byte {at}); convert it first") from error
        n_bytes += len(chunk)
        line += chunk.count(b"\n")
        if text:
            yield text
        if not chunk:
            return


def _parts(chunks: Iterator[str]) -> Iterator[str]:
    """What lies between separators."""
    held: list[str] = []
    tail = ""  # of the document that is being read; a separator may begin in it
    for chunk in chunks:
        *ends, rest = (tail + chunk).split(DOCUMENT_SEPARATOR)
        for end in ends:
            yield "".join((*held, end))
            held.clear()
        cut = max(0, len(rest) - len(DOCUMENT_SEPARATOR) + 1)
        held.append(rest[:cut])
        tail = rest[cut:]
    yield "".join((*held, tail))


def _pieces(chunks: Iterator[str]) -> Iterator[str]:
    """The text in pieces of at most ``PIECE_CHARACTERS``, cut behind the last line end in each, if there is one."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > PIECE_CHARACTERS:
            end = start + PIECE_CHARACTERS
            newline = rest.rfind("\n", start, end)
            end = newline + 1 if newline > start else end
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _json_lines(file: TextFile, text_of: RecordText) -> Iterator[str]:
    with file.open() as stream:
        number = 0
        # the lines of bytes, not of text: a JSON string may hold U+2028, U+0085 and the like as they are
        while raw := stream.readline(MOST_JSON_BYTES + 1):
            number += 1
            where = f"{file.label}, line {number}"
            if len(raw) > MOST_JSON_BYTES:
                raise DataError(f"{where}: longer than {MOST_JSON_BYTES:,} bytes; is there one record in each line?")
            if line := _utf8(raw, where).strip():
                yield text_of(_parsed(line, where), where)


def _json_list(file: TextFile, text_of: RecordText) -> Iterator[str]:
    with file.open() as stream:
        rows = _parsed(_utf8(_whole(stream, file), file.label), file.label)
    if not isinstance(rows, list):
        raise DataError(
            f"{file.label}: expected a JSON list of texts or records, got a {type(rows).__name__}; files with one "
            "record in a line are called .jsonl"
        )
    for i, row in enumerate(rows):
        yield text_of(row, f"{file.label}, entry {i}")


def _whole(stream: ByteStream, file: TextFile) -> bytes:
    parts, size = [], 0
    while part := stream.read(_BUFFER):
        parts.append(part)
        size += len(part)
        if size > MOST_JSON_BYTES:
            raise DataError(
                f"{file.label}: a JSON list of more than {MOST_JSON_BYTES:,} bytes; write a record in "
                "each line, into a .jsonl file, which is read as it comes"
            )
    return b"".join(parts)


def _utf8(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); convert it first") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        hint = "; files with one record in a line are called .jsonl" if "Extra data" in str(error) else ""
        raise DataError(f"{where}: not valid JSON ({error}){hint}") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply to be a record") from error


def _parquet(file: TextFile, text_of: RecordText) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    if file.is_compressed:
        raise DataError(f"{file.label}: Parquet is compressed inside; unpack it first")
    with file.open() as stream:
        try:
            # Arrow reads in a thread of its own. At the end of a process that thread must not be inside Python.
            source = stream if is_remote(file.label) else pyarrow.OSFile(os.fsencode(file.path))
            table = parquet.ParquetFile(source)
            column = text_of.column_among(table.schema_arrow.names, file.label)
            for batch in table.iter_batches(_ROWS, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    yield text_of({column: value}, file.label)
        # what pyarrow says of damaged files, names that are not UTF-8 and sizes beyond the memory among it
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError, KeyError, OverflowError, MemoryError) as error:
            raise file.damaged("Parquet", error) from error
