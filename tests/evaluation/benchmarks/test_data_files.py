"""Benchmarks' data from files: what is read, and what is said of bad lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import SyntheticFeatures
from monosema.evaluation.benchmarks import KnownFeatures
from monosema.evaluation.benchmarks.data_files import (
    read_attributes,
    read_confounded,
    read_features,
    read_labelled,
    read_words,
)


def lines(folder: Path, *records: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in records), "utf-8")
    return path


def test_texts_and_labels(tmp_path: Path) -> None:
    path = lines(tmp_path, {"text": "a\u2028b", "label": "x", "more": 1}, "", {"text": "c", "label": "y"})
    found = read_labelled(path)
    assert (found.texts, found.labels) == (["a\u2028b", "c"], ["x", "y"])
    path = lines(tmp_path, {"body": "a", "is_x": True})
    assert read_labelled(path, "body", "is_x").labels == [True]


def test_confounded_texts(tmp_path: Path) -> None:
    path = lines(
        tmp_path, {"text": "a", "target": True, "spurious": False}, {"text": "b", "target": False, "spurious": False}
    )
    texts, target, spurious = read_confounded(path)
    assert (texts, target.tolist(), spurious.tolist()) == (["a", "b"], [True, False], [False, False])


def test_words_and_their_parents(tmp_path: Path) -> None:
    path = lines(
        tmp_path, {"word": "cat", "parents": ["animal", "pet"]}, {"word": "dog", "parents": "animal"}, {"word": "x"}
    )
    assert read_words(path) == (["cat", "dog", "x"], {"animal": ["cat", "dog"], "pet": ["cat"]})
    path = lines(tmp_path, {"word": " Ape"}, {"word": "bee"})
    assert read_words(path) == ([" Ape", "bee"], {"a": [" Ape"], "b": ["bee"]})


def test_attributes(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"attribute": "country", "template": "{word} is in"},
        {"entity": "Paris", "answers": {"country": " France"}},
    )
    found = read_attributes(path)
    assert found.templates == {"country": "{word} is in"}
    assert found.answers == {"Paris": {"country": " France"}}


def test_known_features(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text("kind: correlated\nd_in: 8\nn_features: 12\n")
    features = read_features(tmp_path / "features.yaml")
    assert features == SyntheticFeatures(kind="correlated", d_in=8, n_features=12)
    tensors = {"directions": torch.eye(2), "magnitudes": torch.ones(3, 2)}
    save_file(tensors, tmp_path / "f.safetensors")
    known = read_features(tmp_path / "f.safetensors")
    assert isinstance(known, KnownFeatures)
    assert torch.equal(known.magnitudes, tensors["magnitudes"])
    save_file({"directions": torch.eye(2)}, tmp_path / "f.safetensors")
    with pytest.raises(DataError, match="must hold the tensors directions and magnitudes"):
        read_features(tmp_path / "f.safetensors")
    (tmp_path / "bad.safetensors").write_text("no")
    with pytest.raises(FileError, match="cannot read"):
        read_features(tmp_path / "bad.safetensors")
    with pytest.raises(ConfigError, match=r"\.safetensors, got features\.csv"):
        read_features("features.csv")


@pytest.mark.parametrize(
    ("read", "record", "message"),
    [
        (read_labelled, "{", r"line 2: not JSON"),
        (read_labelled, "[1]", r"line 2: expected a record, got a list"),
        (read_labelled, {"text": "a"}, r"line 2: no column 'label' among 'text'"),
        (read_labelled, {"text": 1, "label": "x"}, r"line 2: column 'text' holds 1, expected text"),
        (read_labelled, {"text": "a", "label": 0.5}, r"holds 0.5, expected text or a whole number or true or false"),
        (read_labelled, {"text": "a", "label": 1}, r"'label' holds int and str; give labels of one kind"),
        (
            read_confounded,
            {"text": "a", "target": 1, "spurious": True},
            r"line 2: column 'target' holds 1, expected true",
        ),
        (read_words, {"word": "a", "parents": [1]}, r"line 2: 'parents' must be a text or a list of texts"),
        (read_words, {"parents": "a"}, r"line 2: no column 'word'"),
        (read_attributes, {"template": "a"}, r"line 2: no column 'entity'"),
        (read_attributes, {"entity": "a", "answers": "b"}, r"line 2: column 'answers' holds 'b', expected a mapping"),
        (read_attributes, {"entity": "a", "answers": {"c": 1}}, r"line 2, answers: column 'c' holds 1"),
        (read_attributes, {"attribute": "first", "template": ""}, r"line 2: 'first' is given twice"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, read: Callable[[Path], Any], record: Any, message: str) -> None:
    good = {
        read_labelled: {"text": "a", "label": "x"},
        read_confounded: {"text": "a", "target": True, "spurious": True},
        read_words: {"word": "a"},
        read_attributes: {"attribute": "first", "template": "{word}"},
    }[read]
    with pytest.raises(DataError, match=message):
        read(lines(tmp_path, good, record))


def test_files_without_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no records"):
        read_labelled(lines(tmp_path, "", " "))
    with pytest.raises(FileError, match="cannot read"):
        read_labelled(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9", "label": "x"}')
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        read_labelled(tmp_path / "latin.jsonl")
