"""Every place that text may come from, and the message where it cannot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest

from monosema.core.errors import DataError, FileError, UserError
from monosema.data.config import TextSource
from monosema.data.documents import TextFingerprint, documents_from
from monosema.data.documents import open_source as open_text
from monosema.data.file_formats import PIECE_CHARACTERS, Document, named_by_text

TEXTS = ["the first", "the second"]


def open_source(source, **options):
    return open_text(TextSource(source=source, **options))


def documents_of(source, *, tokenizer=None, **options):
    chosen = {name: options.get(name) for name in ("column", "max_documents")}
    return list(documents_from(open_source(source, **options), tokenizer=tokenizer, **chosen))


def texts_of(source, **options):
    return [document.text for document in documents_of(source, **options)]


def text_fingerprint(documents):
    fingerprint = TextFingerprint()
    for document in documents:
        fingerprint.add(document)
    return fingerprint.hexdigest()


def records() -> list[dict[str, str]]:
    return [{"text": text, "url": "x"} for text in TEXTS]


def write(path: Path) -> Path:
    """Write ``TEXTS`` in the format that the name of ``path`` says."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    content = {
        ".txt": "<|endoftext|>".join(f"\n{text}\n" for text in TEXTS),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in records()) + "\n",
        ".json": json.dumps(records()),
    }.get(plain.suffix)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(records()).to_parquet(str(path))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet", "a.txt.gz", "a.jsonl.gz"])
def test_every_file_format_gives_its_documents(tmp_path, name):
    path = write(tmp_path / name)
    assert texts_of(path) == TEXTS
    assert texts_of(str(path)) == TEXTS
    assert texts_of([path, path]) == TEXTS * 2


def test_a_folder_gives_its_files_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("beta")
    (tmp_path / "sub" / "a.txt").write_text("alpha")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    found = documents_from(open_source(tmp_path))
    assert [*found] == [named_by_text("beta"), named_by_text("alpha")]


def test_strings_and_datasets_give_their_texts_under_a_name_made_from_the_text():
    assert texts_of(TEXTS) == TEXTS
    dataset = datasets.Dataset.from_list(records())
    assert texts_of(dataset) == TEXTS
    assert texts_of(dataset.to_iterable_dataset()) == TEXTS
    assert texts_of(dataset, column="url") == ["x", "x"]
    assert texts_of(dataset, max_documents=1) == TEXTS[:1]
    assert [d.name for d in documents_of(TEXTS)] == [d.name for d in documents_of(dataset)]


def test_a_streamed_dataset_is_read_no_further_than_asked():
    def rows():
        yield {"text": "one"}
        yield {"text": "two"}
        raise AssertionError("read too far")

    dataset = datasets.IterableDataset.from_generator(
        rows, features=datasets.Features({"text": datasets.Value("string")})
    )
    assert texts_of(dataset, max_documents=2) == ["one", "two"]


def test_saved_datasets_are_recognised_and_splits_must_be_chosen(tmp_path):
    dataset = datasets.Dataset.from_list(records())
    dataset.save_to_disk(str(tmp_path / "one"))
    assert texts_of(tmp_path / "one") == TEXTS
    both = datasets.DatasetDict({"train": dataset, "test": dataset})
    both.save_to_disk(str(tmp_path / "both"))
    for source in (both, tmp_path / "both"):
        with pytest.raises(DataError, match="splits 'train', 'test'; choose one with split="):
            texts_of(source)


def test_long_plain_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path):
    text = "".join(f"line {i} of some text\n" for i in range(4000)) + "x" * (PIECE_CHARACTERS + 5)
    (tmp_path / "long.txt").write_text(text)
    pieces = documents_of(tmp_path / "long.txt")
    assert "".join(piece.text for piece in pieces) == text
    assert len(pieces) > 3
    assert all(len(piece.text) <= PIECE_CHARACTERS for piece in pieces)
    assert all(piece.text.endswith("\n") for piece in pieces[:3])
    assert pieces == [named_by_text(piece.text) for piece in pieces]


def test_json_lines_are_cut_at_newlines_only(tmp_path):
    text = "a\u2028b\x85c"  # line ends to str.splitlines, but plain characters to JSON
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": text}, ensure_ascii=False) + "\r\n", encoding="utf-8", newline=""
    )
    assert texts_of(tmp_path / "a.jsonl") == [text]


def test_a_bad_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: not valid JSON"):
        texts_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", b"\xffabc", DataError, "not UTF-8 text \\(byte 0\\); convert it"),
        ("a.txt.gz", b"no gzip", FileError, "cannot read"),
        ("a.txt.gz", gzip.compress(b"some text", mtime=0)[:-6], FileError, "damaged"),
        ("a.json", b'{"text": "x"}', DataError, "expected a JSON list"),
        ("a.jsonl", b'{"body": "x"}', DataError, "no text column among 'body'; name it with column="),
        ("a.jsonl", b'{"text": 3}', DataError, "column 'text' holds a int, expected text"),
        ("a.jsonl", b"3", DataError, "expected text or a record"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, error, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        texts_of(tmp_path / name)


def test_a_dataset_that_cannot_be_reached_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Couldn't reach 'squad' on the Hub\nmore\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        UserError, match=r"'squad' is no file .*reach 'squad' on the Hub\); give the path, .* 'stdlib'"
    ) as e:
        open_source("squad")
    assert "\n" not in str(e.value)


def test_sources_that_are_no_text_say_what_is_possible(tmp_path):
    with pytest.raises(FileError, match="no file or folder"):
        texts_of(tmp_path / "missing.txt")
    for path in (str(tmp_path / "missing"), "./missing", "texts/missing.jsonl"):
        with pytest.raises(FileError, match=f"no file or folder {path}; give the path, glob or URL of text files"):
            open_source(path)
    for misspelt in ("sdtlib", "StdLib"):
        with pytest.raises(UserError, match=f"unknown text '{misspelt}'; did you mean 'stdlib'"):
            open_source(misspelt)
    with pytest.raises(DataError, match="holds no text files"):
        texts_of(tmp_path)
    with pytest.raises(DataError, match="list of texts is empty"):
        texts_of([])
    with pytest.raises(DataError, match="strings only"):
        texts_of(["a", 3])
    with pytest.raises(DataError, match="cannot read text from a int; pass 'stdlib'"):
        texts_of(3)
    with pytest.raises(DataError, match="no text column among 'url'; name it with column="):
        texts_of(datasets.Dataset.from_list([{"url": "x"}]))
    with pytest.raises(DataError, match="no text column"):
        texts_of(datasets.Dataset.from_list([]))


@pytest.mark.parametrize("name", ["no/such-dataset", "a long text, given as if it were a name. " * 200])
def test_an_unknown_dataset_name_is_a_users_error(name, monkeypatch):
    def offline(*arguments, **options):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="no file or folder here"):
        texts_of(name)


def test_the_fingerprint_tells_names_texts_order_and_borders_apart():
    base = [Document("a", "bc"), Document("d", "e")]
    others = [
        [Document("ab", "c"), Document("d", "e")],
        [Document("a", "bc"), Document("d", "f")],
        base[::-1],
        base[:1],
        [Document("a", "bcd"), Document("", "e")],
    ]
    assert text_fingerprint(base) == text_fingerprint(list(base))
    assert len({text_fingerprint(documents) for documents in [base, *others]}) == 6
