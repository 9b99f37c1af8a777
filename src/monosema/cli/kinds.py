"""Options that hold one of several configs (an activation, a sparsity loss), chosen by name or by their own options."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from monosema.core.config import from_plain
from monosema.core.errors import ConfigError

Choices = Mapping[str, Mapping[str, type | None]]
"""For such options: their dotted path, and the configs by name."""

_CARRIED = ("k", "target_l0")
"""Options that mean the same in every kind and stay when another kind is chosen."""


def add_kinds(parser: argparse.ArgumentParser, choices: Choices) -> None:
    """One argument for each path of ``choices``."""
    for path, kinds in choices.items():
        alone = _only(kinds) is not None
        text = (
            "its own options follow below; any of them turns it on" if alone else "kind; its own options follow below"
        )
        flags = dict.fromkeys((f"--{path.replace('_', '-')}", f"--{path}"))
        parser.add_argument(*flags, dest=path, choices=list(kinds), help=text)


def resolve_kinds(
    plain: dict[str, Any], choices: Choices, known: argparse.Namespace, arguments: Sequence[str], show_all: bool
) -> None:
    """Put into ``plain`` the kinds that ``known`` names, each as a draft that ``arguments`` may complete.

    A draft takes any values of the right types; whoever reads the whole config again checks them. Where there is one
    kind only, an option of its own chooses it, and ``show_all`` does too. Raises ``ConfigError`` for an option of a
    kind that was not chosen.
    """
    for path, kinds in choices.items():
        *parents, last = path.split(".")
        node: Any = plain
        for part in parents:
            node = node[part] if isinstance(node, Mapping) else None
        if not isinstance(node, dict):
            continue  # a file gave something else, which reading the whole refuses
        chosen = getattr(known, path)
        given = [each.partition("=")[0] for each in arguments if _is_below(each, path)]
        if chosen is None and node.get(last) is None and (given or show_all):
            chosen = _only(kinds)
        if chosen is not None:
            node[last] = _chosen(node.get(last), chosen, kinds[chosen])
        if node.get(last) is None and given:
            names = " or ".join(name for name, kind in kinds.items() if kind is not None)
            raise ConfigError(
                f"{given[0]} belongs to a kind that is not chosen; add --{path.replace('_', '-')} {names}"
            )
        if isinstance(node.get(last), Mapping):
            kind = kinds.get(node[last].get("kind", _only(kinds)))
            if kind is not None:
                node[last] = from_plain(_draft(kind), node[last])


def _only(kinds: Mapping[str, type | None]) -> str | None:
    """The name of the only kind there is, or None."""
    names = [name for name, kind in kinds.items() if kind is not None]
    return names[0] if len(names) == 1 else None


def _is_below(argument: str, path: str) -> bool:
    return argument.replace("_", "-").startswith(f"--{path.replace('_', '-')}.")


def _chosen(old: Mapping[str, Any] | None, name: str, kind: type | None) -> dict[str, Any] | None:
    """The plain form of ``kind``, with what stays of ``old``."""
    if kind is None:
        return None
    old = old or {}
    if old.get("kind", name) == name:
        values = dict(old)
    else:
        names = {field.name for field in dataclasses.fields(kind)}
        values = {key: value for key, value in old.items() if key in names and key in _CARRIED}
    if any(field.name == "k" and field.default is dataclasses.MISSING for field in dataclasses.fields(kind)):
        values.setdefault("k", 32)
        if name in ("TopK", "AbsTopK") and old.get("kind") != name:
            values["k"] = round(values["k"])
    return {**({"kind": name} if getattr(kind, "is_variant", False) else {}), **values}


def _draft(kind: type) -> type:
    """``kind`` without its checks; what it requires is asked for on the command line where nothing gives it."""
    import tyro

    hints = typing.get_type_hints(kind)
    required = [
        (each.name, hints[each.name], dataclasses.field(default=tyro.MISSING))
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    unchecked = {"__post_init__": lambda self: None, "__doc__": kind.__doc__, "__module__": kind.__module__}
    return dataclasses.make_dataclass(
        kind.__name__, required, bases=(kind,), namespace=unchecked, frozen=True, kw_only=True
    )
