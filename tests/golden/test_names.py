"""The names of random streams, and what enters fingerprints and identities, never change: ``names.json`` lists them.

A new name is added to the list by hand. One that is missing or changed gives other draws, or refuses the states that
an earlier version saved, so it is put back.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monosema
from monosema.core.plain import parse_json

EXPECTED: dict[str, Any] = parse_json((Path(__file__).parent / "names.json").read_text(encoding="utf-8"))
SOURCE = Path(monosema.__file__).parent
TREES = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SOURCE.rglob("*.py"))]

GIVEN_ON = {"_rows": 3, "held_out": 3, "train_and_test": 3, "bootstrap_mean": 2, "resampled_means": 2}
"""Functions that give a name on to a random stream, and the place of the first such argument."""
RECORDING = {
    "ActivationStream._identity",
    "ActivationCache._identity",
    "ArrayRows._identity",
    "TextSource.plain",
    "TextSource.record",
    "Mixture.record",
    "PackingRule.record",
    "gather_heldout",
}
"""Functions whose keys enter the fingerprint of a text, or the identity that a saved state belongs to."""
OPTIONS = {"TokenOptions", "StreamOptions", "TextSource", "Packing", "Positions", "HeldoutRule"}
"""Classes whose fields do."""
CONSTANTS = {"_ALWAYS_RECORDED", "_RECORDED_APART", "_CHANGES_NO_BATCH"}
"""Lists that say which fields."""


def names_given(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """The names of each random stream, ``{…}`` for one that is no constant, and the constants given on to one."""
    variables = set[str]()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = called(call)
        if function == "random_stream":
            yield tuple(text(each) for each in call.args[1:])
            variables |= {each.id for each in call.args[1:] if isinstance(each, ast.Name)}
        elif function in GIVEN_ON:
            for each in call.args[GIVEN_ON[function] :]:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield "given on", each.value
    for loop in (node for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)):
        bound = {each.id for each in ast.walk(loop.target) if isinstance(each, ast.Name)}
        if bound & variables:
            for each in texts(loop.iter):
                yield "looped over", each


def called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def text(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "{…}"


def texts(node: ast.AST) -> list[str]:
    return [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods of a file by name, a method behind its class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{each.name}", each) for each in node.body if isinstance(each, ast.FunctionDef))


def keys(function: ast.FunctionDef) -> list[str]:
    """The constants among the keys of dictionaries made in ``function``, and of items set in it."""
    found = set[str]()
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
        elif isinstance(node, ast.DictComp):
            found |= {each for loop in node.generators for each in texts(loop.iter)}
    return sorted(found)


def fields(of: ast.ClassDef) -> list[str]:
    return [each.target.id for each in of.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]


def recorded() -> dict[str, list[list[str]]]:
    """By name of a function, class or constant, the keys of each that is called so."""
    found: dict[str, list[list[str]]] = {}
    for tree in TREES:
        for name, function in functions(tree):
            if name in RECORDING:
                found.setdefault(name, []).append(keys(function))
        for node in tree.body:
            match node:
                case ast.ClassDef(name=name) if name in OPTIONS:
                    found.setdefault(name, []).append(fields(node))
                case ast.Assign(targets=[ast.Name(id=name)]) if name in CONSTANTS:
                    found.setdefault(name, []).append(texts(node.value))
    return {name: sorted(each) for name, each in sorted(found.items())}


def test_the_names_of_random_streams_are_those_listed() -> None:
    found = Counter(names for tree in TREES for names in names_given(tree))
    expected = Counter(map(tuple, EXPECTED["random_streams"]))
    assert not expected - found, "a name is missing or changed: put it back"
    assert not found - expected, "a name is new: add it to names.json"


def test_what_enters_fingerprints_is_what_is_listed() -> None:
    assert recorded() == EXPECTED["fingerprints"], "put back what is missing; add what is new to names.json"
