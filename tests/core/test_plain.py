"""JSON read strictly and written for any reader; single fields held to their types."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monosema.core.config import dump_yaml, parse_yaml
from monosema.core.errors import ConfigError, FileError
from monosema.core.files import read_json, write_json
from monosema.core.plain import (
    dump_json,
    flag_in,
    is_same,
    list_in,
    mapping_in,
    parse_json,
    require_version,
    text_in,
    texts_in,
    whole_in,
)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('{"a": 1, "a": 2}', "a", 1),
        ('{\n"a": 1,\n"b": {"a": 3},\n"a": 2}', "a", 4),
        ('[{"x": "}{\\"x\\":"},\n {"b": [],\n  "c": {"b": 1},\n  "b": 2}]', "b", 4),
        ('{"a\\u0062": 1,\n"ab" : 2}', "ab", 2),
    ],
)
def test_a_key_that_stands_twice_is_refused(text: str, key: str, line: int) -> None:
    with pytest.raises(ValueError, match=f"the key '{key}' stands twice, again in line {line}; leave one"):
        parse_json(text)
    with pytest.raises(ConfigError, match=f"the key '{key}' stands twice, again in line {line}; leave one"):
        parse_yaml(text, "a.yaml")


def test_equal_keys_of_different_mappings_are_no_matter() -> None:
    text = '{"a": {"a": "a", "b": ["a", {"a": 1}]}, "b": {"a": 2}}'
    assert parse_json(text) == json.loads(text) == parse_yaml(text, "a.yaml")
    overriding = "a: &a {lr: 1, k: 2}\nb:\n  <<: *a\n  lr: 3\n"  # what is merged in
    merged = parse_yaml(overriding, "a.yaml")
    assert merged["b"] == {"lr": 3, "k": 2}


def test_nan_and_infinities_are_null(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": NaN, "b": [Infinity, -Infinity, 1.5]}')
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, None, 1.5]}
    write_json(tmp_path / "b.json", {"a": math.nan, "b": (math.inf, -math.inf, 1.5)})
    strictly = json.loads((tmp_path / "b.json").read_text(), parse_constant=pytest.fail)
    assert strictly == {"a": None, "b": [None, None, 1.5]}
    assert dump_json({"a": math.nan}) == '{"a": null}'
    (tmp_path / "a.json").write_text('{"a": 1e999}')
    with pytest.raises(FileError, match=r"a\.json is not valid JSON: it holds a number that is too large for a float"):
        read_json(tmp_path / "a.json")


READS: list[tuple[Callable[..., Any], list[Any], list[Any]]] = [
    (text_in, ["", "a"], [1, True, ["a"], {}]),
    (whole_in, [0, -3], [True, 64.0, 64.5, "64"]),
    (flag_in, [True, False], [0, 1, "false", "true"]),
    (mapping_in, [{}, {"a": 1}], [[], "a", 0, False]),
    (list_in, [[], [1]], [{}, "a", 0, False]),
]


@pytest.mark.parametrize(("read", "right", "wrong"), READS)
def test_fields_are_of_just_their_type(read: Callable[..., Any], right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        assert is_same(read({"x": value}, "x", "a.json"), value)
    for value in wrong:
        with pytest.raises(FileError, match=r"^a\.json: x must be .+, got "):
            read({"x": value}, "x", "a.json")
    assert not read({}, "x", "a.json") and not read({"x": None}, "x", "a.json")


def test_lists_of_texts_and_versions() -> None:
    assert texts_in({"x": ["a", ""]}, "x", "a.json") == ("a", "")
    for value in ("ab", [1], [["a"]]):
        with pytest.raises(FileError, match=r"^a\.json: x must be a list"):
            texts_in({"x": value}, "x", "a.json")
    require_version({"version": 1}, 1, "a.json")
    for other in (2, True, 1.0, "1", None):
        with pytest.raises(FileError, match=r"a\.json is version .*, this library reads 1"):
            require_version({"version": other}, 1, "a.json")


@pytest.mark.parametrize(
    "value", ["1e-3", "7e12345", "1.5e3", 1e-5, 2e22, "a\x1b[2J", "a\u202eb", "größe", True, "true"]
)
def test_yaml_is_read_as_what_was_written(value: Any) -> None:
    text = dump_yaml({"x": value})
    assert is_same(parse_yaml(text, "a.yaml")["x"], value)
    assert "\x1b" not in text and "\u202e" not in text
