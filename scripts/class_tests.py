"""List tests of a dictionary's class outside `monosema.coders`: `python scripts/class_tests.py [SOURCE]`."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "monosema"
ROOT_CLASS = "Dictionary"
HOME = "coders"
CHOICES = frozenset({"auto", "cross_layer_transcoder"})
"""Values of the option ``coder.variant``, which says what to make. No dictionary's ``variant`` is one of them."""


def coder_classes(sources: Mapping[str, str]) -> frozenset[str]:
    """The names of all classes that derive from ``Dictionary``, directly or not. ``sources`` is text by place."""
    bases = {
        node.name: {_last(base) for base in node.bases}
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    while more := {name for name, of in bases.items() if of & {ROOT_CLASS, *found}} - found:
        found |= more
    return frozenset(found)


def class_tests(source: str, classes: frozenset[str]) -> Iterator[tuple[int, str]]:
    """The line and text of each test of one of ``classes``, or of a ``variant``, in ``source``."""
    tree = ast.parse(source)
    named = classes | {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.name in classes
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, wanted, *_]):
                is_test = _mentions(wanted, named)
            case ast.Compare():
                is_test = _compares(node, named)
            case ast.Match(subject=subject) if _is_variant(subject):
                is_test = True
            case ast.MatchClass(cls=wanted):
                is_test = _mentions(wanted, named)
            case _:
                is_test = False
        if is_test:
            assert isinstance(node, ast.expr | ast.pattern | ast.stmt)
            yield node.lineno, ast.unparse(node).partition("\n")[0]


def found_in(sources: Mapping[str, str]) -> list[str]:
    """``place:line: text`` of each test outside ``coders``. ``sources`` is text by path below the package."""
    classes = coder_classes(sources)
    return [
        f"{place}:{line}: {text}"
        for place, source in sorted(sources.items())
        if Path(place).parts[0] != HOME
        for line, text in sorted(class_tests(source, classes))
    ]


def _compares(node: ast.Compare, named: frozenset[str]) -> bool:
    sides = [node.left, *node.comparators]
    others = [side for side in sides if not _is_variant(side)]
    if len(others) < len(sides):
        texts = {each.value for side in others for each in ast.walk(side) if isinstance(each, ast.Constant)}
        return not texts or not texts <= CHOICES
    asks = any(_is_class(side) for side in sides)
    return asks and any(_mentions(side, named) for side in sides if not _is_class(side))


def _is_variant(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "variant"


def _is_class(node: ast.expr) -> bool:
    """Whether ``node`` is ``type(x)``, ``x.__class__``, or the name of one of them."""
    match node:
        case ast.Call(func=ast.Name(id="type"), args=[_]) | ast.Attribute(attr="__class__"):
            return True
        case ast.Attribute(value=value, attr="__name__" | "__qualname__"):
            return _is_class(value)
    return False


def _mentions(node: ast.expr, named: frozenset[str]) -> bool:
    """Whether a class of ``named`` stands in ``node``: alone, in a tuple, in a union, or as text."""
    parts = (each for each in ast.walk(node) if isinstance(each, ast.expr))
    return any((part.value if isinstance(part, ast.Constant) else _last(part)) in named for part in parts)


def _last(node: ast.expr) -> str:
    """``C`` for ``C``, ``room.C`` and ``C[T]``; empty for anything else."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _last(value)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE, help="the package's folder")
    folder: Path = parser.parse_args().source
    files = folder.rglob("*.py")
    found = found_in({file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files})
    print(*found, f"{len(found)} found", sep="\n")


if __name__ == "__main__":
    main()
