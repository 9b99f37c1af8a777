"""Options that hold one of several configs (an activation, a sparsity loss), chosen by name or by their own options."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from monosema.core.config import from_plain
from monosema.core.errors import ConfigError, nearest_names
from monosema.core.spelling import spelled_out

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
        parser.add_argument(
            *flags, dest=path, metavar=f"{{{','.join(kinds)}}}", type=functools.partial(_named, kinds), help=text
        )


def _named(kinds: Mapping[str, type | None], text: str) -> tuple[str, dict[str, Any]]:
    """The kind that ``text`` names, in any case and with its number (``topk``, ``TopK(16)``): its name and options."""
    try:
        plain = spelled_out(text, kinds)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if plain is None:
        return "none", {}
    if isinstance(plain, str):
        near = nearest_names(text, kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(kinds)}"
        raise argparse.ArgumentTypeError(f"unknown kind {text!r:.80}; {hint}")
    return plain["kind"], _without_kind(plain)


def _without_kind(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if name != "kind"}


def spell_out_kinds(plain: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """``plain`` of a file or of the environment, with the options of each kind that is given by its name alone."""
    made = dict(plain)
    for path, kinds in choices.items():
        *parents, last = path.split(".")
        node: Any = made
        for part in parents:
            if isinstance(node, dict) and isinstance(node.get(part), Mapping):
                node[part] = dict(node[part])
                node = node[part]
            else:
                node = {}
        given = node.get(last)
        full = spelled_out(given, kinds)
        if isinstance(given, str) and isinstance(full, Mapping):
            name = full["kind"]
            full = {**(_chosen(None, name, kinds[name]) or {}), **_without_kind(full)}
        if last in node:
            node[last] = full
    return made


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
        chosen, own = getattr(known, path) or (None, {})
        given = [each.partition("=")[0] for each in arguments if _is_below(each, path)]
        if chosen is None and node.get(last) is None and (given or show_all):
            chosen = _only(kinds)
        if chosen is not None:
            kept = _chosen(node.get(last), chosen, kinds[chosen])
            node[last] = None if kept is None else {**kept, **own}
        if node.get(last) is None and given:
            names = " or ".join(name for name, kind in kinds.items() if kind is not None)
            raise ConfigError(
                f"{given[0]} belongs to a kind that is not chosen; add --{path.replace('_', '-')} {names}"
            )
        if isinstance(node.get(last), Mapping):
            kind = kinds.get(node[last].get("kind", _only(kinds)))
            if kind is not None:
                node[last] = from_plain(_draft(kind), node[last], as_typed=True)


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
        if typing.get_type_hints(kind)["k"] is int and old.get("kind") != name:
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
