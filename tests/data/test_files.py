"""Which files a path, folder, glob or URL stands for, and their bytes as a stream."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from monosema.core.errors import DataError, FileError, MissingExtraError
from monosema.data.config import TextSource
from monosema.data.documents import documents_from, open_source
from monosema.data.file_formats import MOST_JSON_BYTES
from monosema.data.files import find_files

ROWS = b"".join(json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(3))
TEXTS = ["row 0", "row 1", "row 2"]


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def texts_of(source, **options):
    return [document.text for document in documents_from(open_source(TextSource(source=source, **options)))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files of several kinds."""
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name, content in {
        "b.jsonl": ROWS,
        "a.jsonl.zst": zstandard(ROWS),
        "c.ndjson.gz": gzip.compress(ROWS),
        "deep/d.txt": b"plain",
        "deep/e.tar.gz": gzip.compress(b"no text"),
        "deep/f.png": b"\xff",
    }.items():
        (tmp_path / "texts" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("texts", ["a.jsonl.zst", "b.jsonl", "c.ndjson.gz", "deep/d.txt"]),
        ("texts/*.jsonl*", ["a.jsonl.zst", "b.jsonl"]),
        ("texts/**/*.txt", ["deep/d.txt"]),
        ("**/[ab].jsonl*", ["texts/a.jsonl.zst", "texts/b.jsonl"]),
        ("texts/deep/d.txt", ["d.txt"]),
    ],
)
def test_names_stand_for_files_in_the_order_of_their_paths(folder, source, names):
    assert [file.name for file in find_files(source)] == names
    assert [file.name for file in find_files(f"{folder}/{source}")] == names


def test_a_file_whose_name_looks_like_a_glob_is_taken_at_its_word(folder):
    (folder / "a[1].txt").write_text("bracketed")
    assert texts_of("a[1].txt") == texts_of(Path("a[1].txt")) == ["bracketed"]


@pytest.mark.parametrize("source", ["texts/b.jsonl", "texts/a.jsonl.zst", "texts/c.ndjson.gz"])
def test_compressed_files_hold_the_same_documents(folder, source):
    assert texts_of(source) == TEXTS


def test_files_of_several_compressed_parts_are_read_to_their_ends(folder):
    (folder / "two.jsonl.zst").write_bytes(zstandard(ROWS) + zstandard(ROWS))
    (folder / "two.jsonl.gz").write_bytes(gzip.compress(ROWS) + gzip.compress(ROWS))
    assert texts_of("two.jsonl.zst") == texts_of("two.jsonl.gz") == TEXTS * 2


def test_urls_of_any_scheme_are_read_like_paths():
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/a.jsonl.zst": zstandard(ROWS), "/corpus/sub/b.txt": b"bee"})
    assert texts_of("memory://corpus/a.jsonl.zst") == TEXTS
    assert texts_of("memory://corpus") == [*TEXTS, "bee"]
    assert texts_of("memory://corpus/**/*.txt") == ["bee"]
    with pytest.raises(FileError, match=r"no file matches memory://corpus/\*\.parquet"):
        texts_of("memory://corpus/*.parquet")
    with pytest.raises(FileError, match="no file or folder memory://corpus/none"):
        texts_of("memory://corpus/none.txt")
    with pytest.raises(FileError, match="no URL that can be read"):
        texts_of("nonsense://corpus/a.txt")


def test_a_scheme_that_is_not_installed_names_the_extra(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=r"Install s3fs to access S3; pip install 'monosema\[remote\]'"):
        find_files("s3://bucket/a.jsonl")


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_large_compressed_file_is_never_in_memory_as_a_whole(tmp_path, suffix):
    line = json.dumps({"text": "word " * 2000}).encode() + b"\n"
    content = line * 800  # 8 MB
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(gzip.compress(content, 1) if suffix == "gz" else zstandard(content))
    del content
    documents = documents_from(open_source(TextSource(source=tmp_path / f"a.jsonl.{suffix}")))
    tracemalloc.start()
    try:
        n_documents = sum(1 for _ in itertools.islice(documents, 300))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_documents == 300
    assert peak < 2e6


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.jsonl.zst", zstandard(ROWS * 100)[:-5], FileError, r"a\.jsonl\.zst: the Zstandard file is damaged or half"),
        ("a.jsonl.zst", b"no zstd at all", FileError, "the Zstandard file is damaged"),
        ("a.jsonl.zst", b"", FileError, r"a\.jsonl\.zst is empty, so no \.zst file"),
        (
            "a.txt.gz",
            gzip.compress(b"text" * 99, mtime=0)[:-9],
            FileError,
            r"a\.txt\.gz: the gzip file is damaged",
        ),
        ("a.txt.gz", b"", FileError, "is empty, so no .gz file"),
        ("a.parquet", b"PAR1 and no more", FileError, r"a\.parquet: the Parquet file is damaged or half-written"),
        ("a.parquet", b"", FileError, "the Parquet file is damaged"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), DataError, "Parquet is compressed inside; unpack it"),
        ("a.txt", b"", DataError, r"a\.txt is empty: its files hold no text"),
        ("a.txt", b"one\ntwo\n\xff", DataError, r"a\.txt, line 3: not UTF-8 text \(byte 8\); convert it"),
        ("a.jsonl", ROWS + b'"\xff"\n', DataError, r"a\.jsonl, line 4: not UTF-8"),
        ("a.jsonl", ROWS[:-5], DataError, r"a\.jsonl, line 3: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, DataError, "nested too deeply"),
        ("a.json", ROWS, DataError, r"Extra data.*one record in a line are called \.jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, error, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        texts_of(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", os.fsdecode(b"\xff.parquet")])
def test_arrow_reads_a_parquet_file_without_calling_python(tmp_path, monkeypatch, name):
    # Arrow reads in a thread of its own. Where that thread calls Python while the process ends, the process aborts.
    table = pyarrow.table({"text": [f"row {i}" for i in range(2000)]})
    parquet.write_table(table, tmp_path / "ours.parquet", row_group_size=700)
    os.rename(tmp_path / "ours.parquet", tmp_path / name)
    monkeypatch.setattr(
        "fsspec.implementations.local.LocalFileOpener.read", lambda *_: pytest.fail("Python was called")
    )
    assert texts_of(tmp_path / name) == table["text"].to_pylist()


def test_a_line_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("monosema.data.file_formats.MOST_JSON_BYTES", 1000)
    assert MOST_JSON_BYTES == 2**28
    (tmp_path / "a.jsonl").write_bytes(ROWS + b'"' + b"a" * 1000 + b'"')
    with pytest.raises(DataError, match="line 4: longer than 1,000 bytes; is there one record"):
        texts_of(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps(["a" * 1000]))
    with pytest.raises(DataError, match=r"a\.json: a JSON list of more than 1,000 bytes; write a record in each line"):
        texts_of(tmp_path / "a.json")


def test_bytes_cut_inside_a_character_and_a_separator_are_put_together(tmp_path, monkeypatch):
    text = "<|endoftext|>".join(["é" * 7, "ü", "ö" * 5])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for size in (1, 2, 3, 5, 14):
        monkeypatch.setattr("monosema.data.file_formats._BUFFER", size)
        assert texts_of(tmp_path / "a.txt") == ["é" * 7, "ü", "ö" * 5]


def test_a_folder_of_other_things_is_no_source(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no text files"):
        find_files(tmp_path)
    with pytest.raises(FileError, match=r"no file matches .*mind that"):
        find_files(f"{tmp_path}/*.txt")
