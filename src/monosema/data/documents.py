"""Documents from the places text lives: the standard library, files, folders, strings, datasets.

A document is the unit of the train/held-out split, so its name (or a hash of its text) decides where it goes, on
every machine alike.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosema.core.errors import DataError, FileError, UserError, first_line, refuse_misspelling
from monosema.core.files import looks_like_path
from monosema.data.stdlib import STDLIB, stdlib_modules

DOCUMENT_SEPARATOR = "<|endoftext|>"
"""Plain text files are cut here, as the TinyStories and OpenWebText dumps are written."""

PIECE_CHARACTERS = 20_000
"""A longer document from a plain text file is cut into pieces of this size at line ends, so that a corpus of one
long file can be split and shuffled as well."""

TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".py", ".jsonl", ".json", ".parquet", ".gz"})


_WHAT_TO_GIVE = f"give the path of a text file or folder, the name of a dataset that can be reached, or {STDLIB!r}"


@dataclass(frozen=True)
class Document:
    """One text with the name that decides on its split."""

    name: str
    text: str


def open_source(source: Any, dataset_options: Mapping[str, Any]) -> Any:
    """``source`` with the name or saved folder of a Hugging Face dataset replaced by the dataset itself."""
    if isinstance(source, Path) or (isinstance(source, str) and source != STDLIB and os.path.exists(source)):
        path = Path(source)
        return _saved_dataset(path) if _is_saved_dataset(path) else path
    if isinstance(source, str) and source != STDLIB:
        refuse_misspelling("text", source, STDLIB)
        if looks_like_path(source) or Path(source).suffix in TEXT_SUFFIXES:
            raise FileError(f"no file or folder {source}; {_WHAT_TO_GIVE}")
        return _load_dataset(source, dataset_options)
    return source


def documents_from(source: Any, *, column: str | None = None, max_documents: int | None = None) -> list[Document]:
    """The first ``max_documents`` documents of an opened ``source``; see ``load_tokens`` for what one may be."""
    if isinstance(source, str) and source == STDLIB:
        return [Document(module.name, module.text) for module in stdlib_modules()][:max_documents]
    if isinstance(source, Path):
        return _from_path(source, column)[:max_documents]
    if isinstance(source, Mapping) or hasattr(source, "column_names"):
        return _from_dataset(source, column, max_documents)
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return _from_sequence(source, column)[:max_documents]
    raise DataError(
        f"cannot read text from a {type(source).__name__}; pass 'stdlib', a file or folder, a list of strings or "
        "paths, or a Hugging Face dataset"
    )


class TextFingerprint:
    """sha256 over names and texts, document by document."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> None:
        """Take in the next document."""
        for part in (document.name, document.text):
            encoded = part.encode("utf-8", "surrogatepass")
            self._digest.update(len(encoded).to_bytes(8, "big"))
            self._digest.update(encoded)

    def hexdigest(self) -> str:
        """Of what was taken in so far."""
        return self._digest.hexdigest()


def text_fingerprint(documents: Iterable[Document]) -> str:
    """sha256 over names and texts in order."""
    fingerprint = TextFingerprint()
    for document in documents:
        fingerprint.add(document)
    return fingerprint.hexdigest()


def _from_sequence(source: Sequence[Any], column: str | None) -> list[Document]:
    if not source:
        raise DataError("the list of texts is empty")
    if all(isinstance(item, Path) for item in source):
        return [document for item in source for document in _from_path(item, column)]
    if all(isinstance(item, str) for item in source):
        return [_named_by_text(text) for text in source]
    raise DataError("a list of texts must hold strings only (or pathlib.Path objects only, for files)")


def _from_path(path: Path, column: str | None) -> list[Document]:
    if not path.exists():
        raise FileError(f"no file or folder {path}")
    if path.is_dir():
        if _is_saved_dataset(path):
            return _from_dataset(_saved_dataset(path), column)
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in TEXT_SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no text files ({', '.join(sorted(TEXT_SUFFIXES))})")
        return [document for file in files for document in _from_file(file, str(file.relative_to(path)), column)]
    return _from_file(path, path.name, column)


def _from_file(path: Path, name: str, column: str | None) -> list[Document]:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        import datasets

        return _from_dataset(datasets.Dataset.from_parquet(str(path)), column)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    except (EOFError, zlib.error) as error:
        raise FileError(f"cannot read {path}: the gzip file is damaged ({error})") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    if suffix == ".jsonl":
        return [_named_by_text(_text_of(row, column, path)) for row in _json_lines(text, path)]
    if suffix == ".json":
        rows = _parse_json(text, path, 1)
        if not isinstance(rows, list):
            raise DataError(f"{path}: expected a JSON list of texts or records, got a {type(rows).__name__}")
        return [_named_by_text(_text_of(row, column, path)) for row in rows]
    documents = [part.strip("\n") for part in text.split(DOCUMENT_SEPARATOR)]
    if len(documents) > 1:
        return [_named_by_text(part) for part in documents if part.strip()]
    return [Document(f"{name}#{i}", piece) for i, piece in enumerate(_pieces(text))]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + PIECE_CHARACTERS
        if end < len(text):
            newline = text.rfind("\n", start, end)
            end = newline + 1 if newline > start else end
        yield text[start:end]
        start = end


def _json_lines(text: str, path: Path) -> Iterator[Any]:
    # not splitlines: a JSON string may hold U+2028, U+0085 and the like as they are
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parse_json(line, path, number)


def _parse_json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}, line {line}: not valid JSON ({error})") from error


def _text_of(row: Any, column: str | None, where: object) -> str:
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping):
        name = column or _text_column(list(row), where)
        if isinstance(row.get(name), str):
            return row[name]
        raise DataError(f"{where}: column {name!r} holds a {type(row.get(name)).__name__}, expected text")
    raise DataError(f"{where}: expected text or a record with a text column, got a {type(row).__name__}")


def _text_column(names: Sequence[str], where: object) -> str:
    for name in ("text", "content", "problem"):
        if name in names:
            return name
    raise DataError(f"{where}: no text column among {', '.join(map(repr, names))}; name it with column=")


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def _saved_dataset(path: Path) -> Any:
    import datasets

    return datasets.load_from_disk(str(path))


def _load_dataset(name: str, options: Mapping[str, Any]) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name!r} is no file or folder here, and no Hugging Face dataset of that name could be loaded "
            f"({first_line(error)}); {_WHAT_TO_GIVE}"
        ) from error


def is_dataset_dict(dataset: Any) -> bool:
    """Whether this is a dictionary of splits rather than one dataset."""
    return isinstance(dataset, Mapping)


def _from_dataset(dataset: Any, column: str | None, max_documents: int | None = None) -> list[Document]:
    if is_dataset_dict(dataset):
        raise DataError(f"the dataset has splits {', '.join(map(repr, dataset))}; choose one with split=")
    name = column or _text_column(dataset.column_names or list(next(iter(dataset), {})), "the dataset")
    rows = itertools.islice(dataset, max_documents)  # a streamed dataset is not read to its end
    return [_named_by_text(_text_of(row, name, "the dataset")) for row in rows]


def _named_by_text(text: str) -> Document:
    return Document(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), text)
