"""Strict configs: what is read, what is refused and how the refusal reads."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from monosema.core.config import differences, from_plain, from_yaml, load_plain, merge, to_plain, to_yaml
from monosema.core.errors import ConfigError, FileError, UserError


@dataclass(frozen=True, kw_only=True)
class Red:
    is_variant: ClassVar[bool] = True
    shade: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Blue:
    is_variant: ClassVar[bool] = True
    depth: int


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    tokens: int
    colour: Red | Blue = Red()
    inner: Inner = Inner()
    lr: float | Literal["auto"] = "auto"
    mode: Literal["fast", "exact"] = "fast"
    level: Literal[1, 2] = 1
    folder: Path | None = None
    shuffle: bool = True
    label: str = ""
    pair: tuple[int, float] = (1, 2.0)
    sizes: list[int] = field(default_factory=list)
    options: dict[str, float] = field(default_factory=dict)
    maybe: Inner | None = None
    anything: Any = None
    derived: int = field(init=False, default=7)


FULL = Outer(
    tokens=5,
    colour=Blue(depth=3),
    inner=Inner(rate=1e-5, names=("a", "1e-3", "null")),
    lr=3e-4,
    mode="exact",
    folder=Path("a/b"),
    shuffle=False,
    label="größe: yes",
    pair=(4, 0.5),
    sizes=[1, 2],
    options={"x": 1.0},
    maybe=Inner(),
    anything={"deep": [1, None]},
)


@pytest.mark.parametrize("config", [FULL, Outer(tokens=1)])
def test_round_trip_through_plain_yaml_and_json(config: Outer) -> None:
    assert from_plain(Outer, to_plain(config)) == config
    assert from_yaml(Outer, to_yaml(config)) == config
    assert from_yaml(Outer, json.dumps(to_plain(config))) == config
    assert from_plain(Outer, json.loads(json.dumps(to_plain(config)))) == config


def test_plain_form() -> None:
    plain = to_plain(FULL)
    assert plain["colour"] == {"kind": "Blue", "depth": 3}
    assert plain["inner"] == {"rate": 1e-5, "names": ["a", "1e-3", "null"]}
    assert plain["folder"] == "a/b"
    assert "derived" not in plain  # computed, not an option
    assert list(plain)[:2] == ["tokens", "colour"]
    assert to_yaml(Inner()) == "rate: 0.1\nnames: []\n"


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"tokns": 1}, "unknown option 'tokns'; did you mean 'tokens'?"),
        ({"tokens": 1, "inner": {"rat": 1}}, "unknown option 'inner.rat'; did you mean 'rate'?"),
        ({"tokens": 1, "inner": {"zzz": 1}}, "unknown option 'inner.zzz'; known: rate, names"),
        ({"tokens": 1, "derived": 7}, "unknown option 'derived'"),
        ({"tokens": 1, True: 2}, "unknown option 'True'"),
        ({}, "Outer: missing tokens"),
        ({"tokens": 1, "colour": {"kind": "Blue"}}, "colour: missing depth"),
        (
            {"tokens": 1, "colour": {"kind": "Blu", "depth": 1}},
            "colour: expected a mapping with 'kind', got kind 'Blu'; did",
        ),
        ({"tokens": 1, "colour": {"depth": 1}}, "got kind None; known: Red, Blue"),
        ({"tokens": 1, "colour": {"kind": "Red", "depth": 1}}, "unknown option 'colour.depth'"),
        ({"tokens": 1, "colour": "Red"}, "colour: expected a mapping with 'kind' 'Red' or 'Blue', got 'Red'"),
        ({"tokens": "many"}, "tokens: expected a whole number, got 'many'"),
        ({"tokens": 1.5}, "tokens: expected a whole number, got 1.5"),
        ({"tokens": True}, "tokens: expected a whole number, got True"),
        ({"tokens": None}, "tokens: expected a whole number, got None"),
        ({"tokens": 1, "inner": {"rate": True}}, "inner.rate: expected a number, got True"),
        ({"tokens": 1, "inner": {"rate": "fast"}}, "inner.rate: expected a number, got 'fast'"),
        ({"tokens": 1, "inner": {"names": "abc"}}, "inner.names: expected a list, got 'abc'"),
        ({"tokens": 1, "inner": {"names": ["a", 2]}}, "inner.names[1]: expected a string, got 2"),
        ({"tokens": 1, "inner": [1]}, "inner: expected a mapping of Inner options, got [1]"),
        ({"tokens": 1, "mode": "slow"}, "mode: expected 'fast' or 'exact', got 'slow'"),
        ({"tokens": 1, "mode": ["fast"]}, "mode: expected 'fast' or 'exact', got ['fast']"),
        ({"tokens": 1, "level": True}, "level: expected 1 or 2, got True"),
        ({"tokens": 1, "lr": "atuo"}, "lr: expected a number, got 'atuo'; or lr: expected 'auto', got 'atuo'"),
        ({"tokens": 1, "shuffle": 1}, "shuffle: expected true or false, got 1"),
        ({"tokens": 1, "label": 3}, "label: expected a string, got 3"),
        ({"tokens": 1, "folder": 3}, "folder: expected a path, got 3"),
        ({"tokens": 1, "pair": [1]}, "pair: expected 2 values, got [1]"),
        ({"tokens": 1, "pair": [1, "x"]}, "pair[1]: expected a number, got 'x'"),
        ({"tokens": 1, "options": {"a": "b"}}, "options.a: expected a number, got 'b'"),
        ({"tokens": 1, "options": [1]}, "options: expected a mapping, got [1]"),
        ({"tokens": 1, "maybe": {"rate": "x"}}, "maybe.rate: expected a number, got 'x'"),
        ("nothing", "config: expected a mapping of Outer options, got 'nothing'"),
    ],
)
def test_refusals_say_where_and_what(plain: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_plain(Outer, plain)
    assert message in str(raised.value)


def test_accepted_forms() -> None:
    assert from_plain(Inner, {"rate": 1}) == Inner(rate=1.0)
    assert from_yaml(Inner, "rate: 1e-3") == Inner(rate=1e-3)  # YAML 1.1 reads this as a string
    assert from_yaml(Inner, "") == Inner()
    assert from_yaml(Inner, '{"rate": 0.5}') == Inner(rate=0.5)
    assert from_plain(Outer, {"tokens": 1, "maybe": None}).maybe is None
    assert from_plain(Outer, {"tokens": 1, "maybe": {"rate": 2}}).maybe == Inner(rate=2.0)
    assert from_plain(Outer, {"tokens": 1, "colour": {"kind": "Red"}}).colour == Red()
    assert from_plain(Outer, {"tokens": 1, "inner": Inner(), "colour": Blue(depth=1)}).colour == Blue(depth=1)
    assert from_plain(Outer, {"tokens": 1, "inner": {"names": ["a"]}}).inner.names == ("a",)
    assert math.isinf(from_yaml(Inner, "rate: .inf").rate)


def test_to_plain_refuses_what_a_file_cannot_hold() -> None:
    with pytest.raises(ConfigError, match="a config cannot hold a set"):
        to_plain(Outer(tokens=1, anything={1}))


def test_broken_yaml() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        from_yaml(Outer, "a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        from_yaml(Outer, "!!python/object/apply:os.system [echo]")


class TestLoadPlain:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [("a.yaml", "x: 1", {"x": 1}), ("a.json", '{"x": 1}', {"x": 1}), ("a.yaml", "", {}), ("a.yml", "{}", {})],
    )
    def test_reads(self, tmp_path: Path, name: str, text: str, expected: Mapping[str, Any]) -> None:
        (tmp_path / name).write_text(text)
        assert load_plain(tmp_path / name) == expected

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.yaml", b"- 1", "must hold a mapping of options, got a list"),
            ("a.json", b"{", "is not valid JSON"),
            ("a.json", b"x: 1", "is not valid JSON"),
            ("a.yaml", b"a: [", "is not valid YAML"),
            ("a.yaml", b"\xff\xfe\x00", "is not UTF-8 text"),
        ],
    )
    def test_refuses(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_plain(tmp_path / name)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match=r"cannot read .*none\.yaml: No such file"):
            load_plain(tmp_path / "none.yaml")


def test_merge_goes_into_mappings_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    update = {"a": {"y": 5}, "c": 4}
    assert merge(base, update) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 4}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}
    assert merge({"a": {"x": 1}}, {"a": None}) == {"a": None}
    assert merge({"a": 1}, {"a": {"x": 1}}) == {"a": {"x": 1}}
    assert merge({"sizes": [1, 2]}, {"sizes": [3]}) == {"sizes": [3]}


def test_merge_of_another_kind_replaces_the_whole() -> None:
    old = {"colour": {"kind": "Red", "shade": 0.1}}
    assert merge(old, {"colour": {"kind": "Blue", "depth": 1}}) == {"colour": {"kind": "Blue", "depth": 1}}
    assert merge(old, {"colour": {"kind": "Red"}}) == old
    assert merge(old, {"colour": {"shade": 0.2}}) == {"colour": {"kind": "Red", "shade": 0.2}}


def test_differences() -> None:
    new = Outer(tokens=6, colour=Red(), inner=Inner(rate=1e-5, names=("a", "1e-3", "null")))
    lines = differences(to_plain(FULL), to_plain(new))
    assert "tokens: 5 -> 6" in lines
    assert "colour.kind: 'Blue' -> 'Red'" in lines
    assert "colour.depth: 3 -> None" in lines
    assert not any(line.startswith("inner") for line in lines)
    assert differences(to_plain(FULL), to_plain(FULL)) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b: 1 -> 2"]


ACCEPTED_OR_REFUSED = """
import numpy as np
import monosema as ms
from monosema.core.errors import ConfigError
ms.TrainingConfig(tokens=np.int64(10), lr=1, site_weights=(1, 2.5))
ms.SAE(8, np.int64(16), activation=ms.BatchTopK(k=2))
for make in (
    lambda: ms.TrainingConfig(tokens=10, input_scaling="whiten"),
    lambda: ms.TrainingConfig(tokens=10, revive="AuxK"),
    lambda: ms.TrainingConfig(tokens=10, lr="automatic"),
    lambda: ms.TrainingConfig(tokens=10, sparsity=ms.L1),
    lambda: ms.TrainingConfig(tokens=1.5),
    lambda: ms.TrainingConfig(tokens=True),
    lambda: ms.TrainingConfig(tokens=10, site_weights=1.0),
    lambda: ms.SAE(8, 16, b_dec="outptu"),
    lambda: ms.SAE(8, 32.5),
    lambda: ms.SAE(8, 16, activation="gelu"),
    lambda: ms.TopK(k=2.5),
    lambda: ms.JumpReLU(bandwidth="wide"),
):
    try:
        make()
    except ConfigError as error:
        assert ": expected " in str(error), error
    else:
        raise SystemExit("accepted")
"""


def test_python_configs_are_checked_as_those_from_files_are() -> None:
    """In an interpreter of its own: here the tests' type checker would be first."""
    done = subprocess.run([sys.executable, "-c", ACCEPTED_OR_REFUSED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
