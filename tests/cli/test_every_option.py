"""Whatever a run's YAML can say, its command line can say too."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import pytest
import yaml

from monosema.cli.main import main
from monosema.core.config import merge
from monosema.core.families import is_family
from monosema.runs.config import RunConfig

MAPPINGS = {
    "model.model_kwargs": "names and types are those of from_pretrained",
    "model.forward_kwargs": "names and types are those of the model's forward",
    "other_models": "models by names that the file makes up",
    "tokens.mixture": "sources by names that the file makes up",
}
"""Fields that only a file or the environment can set."""

FITTING = {
    "coder.activation.k": 7,
    "stream.compile": "max-autotune",
    "training.compile": "max-autotune",
    "training.keep_best": "heldout/fve",
    "training.levels.fractions": [0.25, 0.75],
    "training.levels.widths": [3, 9],
    "training.levels.budgets": [3, 9],
    "training.revive.preset": "drrik",
    "tokens.exclude_special_tokens": [3, 5],
}
"""Values where a random one would be refused."""

ALONE = (
    "coder.expansion_factor",
    "stream.chunk_bytes",
    "training.checkpoint_tokens",
    "training.levels.widths",
    "training.revive.dead_below_density",
    "training.revive.rewarm_fraction",
)
"""Options that exclude another one."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    path: str
    hint: Any
    default: Any
    kinds: tuple[tuple[str, str], ...]
    """The kinds that have to be chosen for it to be there, by the paths of their options."""

    @property
    def value(self) -> Any:
        return FITTING[self.path] if self.path in FITTING else other_than(self.default, self.hint)


def leaves(cls: type, prefix: str = "", kinds: tuple[tuple[str, str], ...] = ()) -> Iterator[Leaf]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path, hint = f"{prefix}{field.name}", hints[field.name]
        union = is_family(hint) or typing.get_origin(hint) in (typing.Union, types.UnionType)
        options = tuple(hint.kinds().values()) if is_family(hint) else typing.get_args(hint) if union else (hint,)
        configs = [each for each in options if dataclasses.is_dataclass(each)]
        for config in configs:
            chosen = (*kinds, (path, config.__name__)) if union else kinds
            yield from leaves(config, f"{path}.", chosen)
        if not configs and path not in MAPPINGS:
            yield Leaf(path, hint, field.default, kinds)


def other_than(default: Any, hint: Any) -> Any:
    """A value that ``hint`` admits and that is not the default."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return other_than(default, next(each for each in arguments if each is not type(None)))
    if origin is typing.Literal:
        return next(each for each in arguments if each != default)
    if origin is tuple:
        return [other_than(None, arguments[0])] * 2
    return {bool: default is not True, int: 3, float: 0.125, str: "other"}[hint]


def words(leaf: Leaf) -> list[str]:
    flag, value = f"--{leaf.path}".replace("_", "-"), leaf.value
    if leaf.hint is bool:
        section, _, name = flag.rpartition(".")
        return [flag if value else f"{section}.no-{name}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def nested(leaf: Leaf) -> dict[str, Any]:
    *parents, last = leaf.path.split(".")
    plain: dict[str, Any] = {last: leaf.value}
    for part in reversed(parents):
        plain = {part: plain}
    return plain


def command_lines() -> list[list[Leaf]]:
    """All leaves, each once or more, on command lines whose options go together."""
    every = list(leaves(RunConfig))
    kinds: dict[str, list[str]] = {}
    for leaf in every:
        for path, name in leaf.kinds:
            kinds.setdefault(path, []).append(name)
    kinds |= {"coder.activation": [*kinds["coder.activation"], "ReLU", "TanhReLU", "Gated"]}  # they have no options
    names = [list(dict.fromkeys(each)) for each in kinds.values()]
    lines = []
    for chosen in zip_longest(*names):
        there = {pair for pair in zip(kinds, chosen, strict=True) if pair[1] is not None}
        line = [leaf for leaf in every if set(leaf.kinds) <= there]
        lines.append([leaf for leaf in line if leaf.path not in ALONE])
        lines += [[leaf] for leaf in line if leaf.path in ALONE and (leaf.kinds or len(lines) == 1)]
    return lines


LINES = command_lines()


def test_no_option_is_left_out() -> None:
    tried = {(leaf.path, leaf.kinds) for line in LINES for leaf in line}
    assert tried == {(leaf.path, leaf.kinds) for leaf in leaves(RunConfig)}
    assert {path for path, _ in tried} >= {
        "training.levels.fractions",
        "training.levels.widths",
        "training.levels.budgets",
        "training.finetuning.weights",
        "training.sparse_connection.path",
        "coder.activation.bandwidth",
        "stream.hook_names",
        "evaluation.ablation",
    }
    for path in MAPPINGS:
        field: Any = RunConfig
        for part in path.split("."):
            field = typing.get_type_hints(field)[part]
        assert typing.get_origin(field) is dict, f"{path} is no mapping; the command line should have it"


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0].path if len(line) == 1 else "")
def test_every_option_reaches_the_config(line: list[Leaf], capsys: pytest.CaptureFixture[str]) -> None:
    chosen = dict(pair for leaf in line for pair in leaf.kinds)
    single = ("cache", "training.finetuning", "training.sparse_connection")  # an option of theirs turns them on
    arguments = [word for path, name in chosen.items() if path not in single for word in (f"--{path}", name)]
    expected: Mapping[str, Any] = {}
    for leaf in line:
        arguments += words(leaf)
        expected = merge(expected, nested(leaf))
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments, "--print-config"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    found = yaml.safe_load(printed.out)
    assert merge(found, expected) == found
    for path, name in chosen.items():
        section, _, last = path.rpartition(".")
        assert path in single or found[section][last]["kind"] == name
