"""The data of the benchmarks from files: JSON lines of labelled texts, words or attributes, and known features."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosema.core.config import from_plain, load_plain
from monosema.core.errors import ConfigError, DataError, FileError, first_line
from monosema.core.plain import parse_json
from monosema.core.tensors import read_tensors
from monosema.data.synthetic import SyntheticFeatures
from monosema.evaluation.benchmarks.absorption import first_letters
from monosema.evaluation.benchmarks.ravel_prompts import AttributeData
from monosema.evaluation.benchmarks.truth import KnownFeatures

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with a label each."""

    texts: list[str]
    """The texts."""
    labels: list[Any]
    """Theirs."""


def read_labelled(path: _PathLike, text: str = "text", label: str = "label") -> LabelledTexts:
    """Texts and their labels, text, whole numbers or true and false, from the columns of these names."""
    texts, labels = [], []
    for where, record in _records(path):
        texts.append(_value(record, text, (str,), where))
        labels.append(_value(record, label, (str, int, bool), where))
    kinds = {type(each).__name__ for each in labels}
    if len(kinds) > 1:
        raise DataError(f"{path}: the column {label!r} holds {' and '.join(sorted(kinds))}; give labels of one kind")
    return LabelledTexts(texts, labels)


def read_confounded(path: _PathLike) -> tuple[list[str], Tensor, Tensor]:
    """Texts, and the two labels of each (bool ``[N]``), from the columns ``text``, ``target`` and ``spurious``."""
    texts, pairs = [], []
    for where, record in _records(path):
        texts.append(_value(record, "text", (str,), where))
        pairs.append([_value(record, name, (bool,), where) for name in ("target", "spurious")])
    target, spurious = torch.tensor(pairs, dtype=torch.bool).reshape(-1, 2).unbind(1)
    return texts, target, spurious


def read_words(path: _PathLike) -> tuple[list[str], dict[str, list[str]]]:
    """Words from the column ``word``, and a hierarchy: the words of each of their ``parents`` (a text or a list).

    Without a column ``parents`` in the whole file, that of their first letters.
    """
    words: list[str] = []
    hierarchy: dict[str, list[str]] = {}
    n_with_parents = 0
    for where, record in _records(path):
        words.append(_value(record, "word", (str,), where))
        if "parents" in record:
            n_with_parents += 1
            given = _value(record, "parents", (str, list), where)
            parents = [given] if isinstance(given, str) else given
            if not all(isinstance(parent, str) for parent in parents):
                raise DataError(f"{where}: 'parents' must be a text or a list of texts, got {given!r:.60}")
            for parent in parents:
                hierarchy.setdefault(parent, []).append(words[-1])
    return words, hierarchy if n_with_parents else first_letters(words)


def read_attributes(path: _PathLike) -> AttributeData:
    """Lines ``{"attribute": ..., "template": ...}`` and ``{"entity": ..., "answers": {attribute: answer}}``."""
    templates: dict[str, str] = {}
    answers: dict[str, Mapping[str, str]] = {}
    for where, record in _records(path):
        is_attribute = "attribute" in record
        name = _value(record, "attribute" if is_attribute else "entity", (str,), where)
        if name in (templates if is_attribute else answers):
            raise DataError(f"{where}: {name!r} is given twice; leave one of them out")
        if is_attribute:
            templates[name] = _value(record, "template", (str,), where)
            continue
        given = _value(record, "answers", (dict,), where)
        for attribute in given:
            _value(given, attribute, (str,), f"{where}, answers")
        answers[name] = given
    return AttributeData(templates=templates, answers=answers)


def read_features(path: _PathLike) -> SyntheticFeatures | KnownFeatures:
    """Options of ``SyntheticFeatures`` (.yaml, .json), or ``KnownFeatures`` as tensors of these names (safetensors)."""
    suffix = Path(path).suffix
    if suffix in (".yaml", ".yml", ".json"):
        return from_plain(SyntheticFeatures, load_plain(Path(path)))
    if suffix != ".safetensors":
        raise ConfigError(f"known features are read from .yaml, .json or .safetensors, got {path}")
    tensors = read_tensors(Path(path))
    wanted = {"directions", "magnitudes"}
    if not wanted <= set(tensors) <= wanted | {"rows"}:
        raise DataError(
            f"{path} must hold the tensors directions and magnitudes, and may hold rows; got {', '.join(tensors)}"
        )
    return KnownFeatures(**tensors)


def _records(path: _PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of JSON lines, and where each is."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or first_line(error)}") from error
    n_records = 0
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text; convert it first") from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: not JSON ({first_line(error)}); there must be one record in each line"
            ) from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a record, got a {type(record).__name__}")
        n_records += 1
        yield where, record
    if not n_records:
        raise DataError(f"{path} holds no records; it must have one in each line")


def _value(record: Mapping[str, Any], name: str, kinds: Sequence[type], where: str) -> Any:
    if name not in record:
        raise DataError(f"{where}: no column {name!r} among {', '.join(map(repr, record)) or 'none'}")
    value = record[name]
    if type(value) not in kinds:
        names = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}
        expected = " or ".join(names[kind] for kind in kinds)
        raise DataError(f"{where}: column {name!r} holds {value!r:.60}, expected {expected}")
    return value
