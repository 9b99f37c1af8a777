"""Documents from the places text lives: the standard library, files, URLs, strings, records, datasets.

A document is the unit of the train/held-out split. A hash of its text (of a module of the standard library, its name)
decides where it goes, on every machine and under every path alike. Documents come one after the other; no source is
held in memory that was not there before.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosema.core.errors import (
    ConfigError,
    DataError,
    FileError,
    UserError,
    first_line,
    refuse_misspelling,
    unknown_name,
)
from monosema.core.files import looks_like_path
from monosema.data.config import SOURCE_OPTIONS, TextSource
from monosema.data.file_formats import Document, documents_in, named_by_text
from monosema.data.files import TextFile, find_files, has_text_suffix, holds_any, is_glob, is_remote
from monosema.data.records import RecordText
from monosema.data.stdlib import STDLIB, stdlib_modules

_WHAT_TO_GIVE = (
    "give the path, glob or URL of text files or a folder of them, the name of a dataset that can be reached, or "
    f"{STDLIB!r}"
)
_ROWS = 512
_PICKLES = "pandas"
"""A loader of ``datasets`` that unpickles files, in versions before it was disabled."""


@dataclass(frozen=True)
class TextFiles:
    """The files that a name stands for."""

    source: str
    """That name."""
    files: tuple[TextFile, ...]
    """At least one, in order."""


def open_source(source: TextSource) -> Any:
    """What ``source`` names, before any text is read: files, a Hugging Face dataset, or what was handed in.

    Raises ``FileError`` and ``UserError`` where nothing of that name can be reached, ``ConfigError`` for options that
    belong to another kind of source, ``DataError`` where a dataset's split must be chosen.
    """
    opened, used = _open(source)
    if is_dataset_dict(opened):
        used = {*used, "split"}
        opened = _chosen_split(opened, source)
    unused = [name for name in source.chosen() if name not in (*used, "column", "max_documents")]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)} cannot be used with {source.plain()['source']}: split is for datasets that have "
            "several, the others are for datasets loaded by name; leave it out"
        )
    return opened


def _open(source: TextSource) -> tuple[Any, set[str]]:
    """What is there, and the options that were used in opening it."""
    given = source.source() if _is_function(source.source) else source.source
    if not isinstance(given, (str, Path)) or given == STDLIB:
        return given, set()
    if isinstance(given, Path) or os.path.exists(given) or is_remote(given) or is_glob(given):
        saved = _saved_dataset(given)
        return TextFiles(str(given), tuple(find_files(given))) if saved is None else saved, set()
    refuse_misspelling("text", given, STDLIB)
    if looks_like_path(given) or has_text_suffix(given):
        raise FileError(f"no file or folder {given}; {_WHAT_TO_GIVE}")
    return _load_dataset(given, source), {*SOURCE_OPTIONS}


def documents_from(
    source: Any, *, column: str | None = None, max_documents: int | None = None, tokenizer: Any = None
) -> Iterator[Document]:
    """The first ``max_documents`` documents of an opened ``source``, read as they are asked for.

    ``tokenizer`` is needed for conversations only. Raises ``DataError`` and ``FileError`` naming the place where the
    text cannot be read, and ``DataError`` where there is none.
    """
    documents = itertools.islice(_all_documents(source, RecordText(column, tokenizer)), max_documents)
    first = next(documents, None)
    if first is None:
        raise DataError(_nothing(source))
    return itertools.chain([first], documents)


class TextFingerprint:
    """sha256 over names and texts of documents in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> None:
        """Read one more."""
        for part in (document.name, document.text):
            encoded = part.encode("utf-8", "surrogatepass")
            self._digest.update(len(encoded).to_bytes(8, "big"))
            self._digest.update(encoded)

    def hexdigest(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()


def is_dataset_dict(dataset: Any) -> bool:
    """Whether this is a dictionary of splits rather than one dataset."""
    return isinstance(dataset, Mapping)


def _all_documents(source: Any, text_of: RecordText) -> Iterator[Document]:
    if isinstance(source, str) and source == STDLIB:
        return (Document(module.name, module.text) for module in stdlib_modules())
    if isinstance(source, TextFiles):
        return itertools.chain.from_iterable(documents_in(file, text_of) for file in source.files)
    if hasattr(source, "column_names"):
        return _from_dataset(source, text_of)
    if isinstance(source, Iterable) and not isinstance(source, (str, bytes, Mapping)):
        return _from_items(source, text_of)
    raise DataError(
        f"cannot read text from a {type(source).__name__}; pass 'stdlib', a file, folder, glob or URL, an iterable of "
        "strings, records or paths, a function that returns one, or a Hugging Face dataset"
    )


def _from_items(items: Iterable[Any], text_of: RecordText) -> Iterator[Document]:
    """Strings, records, or paths of files, all of the kind of the first."""
    kind: type | None = None
    for i, item in enumerate(items):
        kind = kind or next((each for each in (str, Path, Mapping, Sequence) if isinstance(item, each)), None)
        if kind is None or not isinstance(item, kind):
            raise DataError(
                "texts in memory must be strings only, records only or pathlib.Path objects only (for files); "
                f"item {i} is a {type(item).__name__}"
            )
        if isinstance(item, Path):
            opened = open_source(TextSource(source=item))
            yield from _all_documents(opened, text_of)
        else:
            yield named_by_text(text_of(item, f"item {i}"))


def _from_dataset(dataset: Any, text_of: RecordText) -> Iterator[Document]:
    """The rows of a Hugging Face dataset; of one that is streamed, no more are fetched than are asked for."""
    streamed = not hasattr(dataset, "__len__")
    names = dataset.column_names or list(next(iter(dataset), {}))
    column = text_of.column_among(names, "the dataset")
    require_sound(dataset, column)
    if dataset.column_names:
        dataset = dataset.select_columns([column])
    if streamed:
        rows = (row[column] for row in dataset)
    else:
        batches = dataset.with_format(None).iter(_ROWS)
        rows = (value for batch in batches for value in batch[column])
    for i, value in enumerate(rows):
        yield named_by_text(text_of({column: value}, f"the dataset, row {i}"))


def require_sound(dataset: Any, column: str) -> None:
    """``FileError`` where an Arrow file says that a value lies where none is: reading it would end the process."""
    import pyarrow as pa

    table = getattr(getattr(dataset, "data", None), "table", None)
    if isinstance(table, pa.Table) and column in table.column_names:
        try:
            table.column(column).validate(full=True)
        except pa.ArrowException as error:
            raise FileError(f"the dataset is damaged: {first_line(error)}") from error


def _nothing(source: Any) -> str:
    if isinstance(source, TextFiles):
        return f"{source.source} is empty: its files hold no text"
    if isinstance(source, Sequence):
        return "the list of texts is empty"
    if isinstance(source, Iterator):
        return "no text came; an iterator can be read once only, so give a function that returns a fresh one"
    return "the dataset is empty" if hasattr(source, "column_names") else "the text is empty"


def _is_function(source: Any) -> bool:
    return callable(source) and not hasattr(source, "column_names")


def _chosen_split(splits: Mapping[str, Any], source: TextSource) -> Any:
    if source.split is None:
        names = ", ".join(map(repr, splits))
        raise DataError(f"the dataset {source.plain()['source']} has splits {names}; choose one with split=")
    if source.split not in splits:
        raise unknown_name("split", source.split, splits)
    return splits[source.split]


def _saved_dataset(source: str | Path) -> Any:
    """The dataset (or splits) that ``save_to_disk`` left in the folder ``source``; None where there is none."""
    if not holds_any(source, ("dataset_info.json", "dataset_dict.json")):
        return None
    import datasets

    try:
        return datasets.load_from_disk(str(source))
    except Exception as error:  # of many kinds, for damaged files
        raise FileError(f"cannot read the dataset saved in {source} ({first_line(error)}); save it again") from error


def _load_dataset(name: str, source: TextSource) -> Any:
    import datasets

    if name == _PICKLES:
        raise UserError(f"{name!r} reads pickles, which can run code; save the table as Parquet and name that file")
    options = {key: value for key, value in source.chosen().items() if key not in ("column", "max_documents")}
    if "config_name" in options:
        options["name"] = options.pop("config_name")
    if "data_files" in options:
        options["data_files"] = list(options["data_files"])
    if int(datasets.__version__.split(".")[0]) < 4:  # later versions run no code of a dataset's
        options["trust_remote_code"] = False
    try:
        return datasets.load_dataset(name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name!r} is no file or folder here, and no Hugging Face dataset of that name could be loaded "
            f"({first_line(error)}); {_WHAT_TO_GIVE}"
        ) from error
