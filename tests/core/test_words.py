"""Counts agree with the nouns behind them, everywhere in the package."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import monosema
from monosema.core.words import counted

SOURCE = Path(monosema.__file__).parent

NOUNS = (
    "activations|architectures|batches|buffers|bytes|characters|checkpoints|chunks|classes|columns|concepts|"
    "contexts|copies|decoders|dictionaries|dimensions|directions|documents|elements|entities|entries|epochs|"
    "examples|features|figures|files|folders|forwards|gradients|groups|heads|intervals|keys|labels|latents|layers|"
    "lines|messages|models|names|operations|options|pairs|parameters|parts|passes|phases|points|positions|"
    "predictions|prefixes|probes|processes|prompts|records|rows|runs|samples|scores|seconds|sequences|shards|"
    "sites|sources|splits|steps|tasks|tensors|texts|threads|tokens|updates|values|vectors|versions|vocabularies|"
    "widths|words|workers|writers"
)
"""Plurals that the package counts."""

NO_ADJECTIVE = "and|as|at|belongs|does|fit|for|has|hold|holds|in|is|lists|of|on|or|per|speaks|than|to|with"
"""What may stand between a value and a plural that it does not count."""

PLURAL = re.compile(rf" (?:(?!(?:{NO_ADJECTIVE}) )[a-z]+(?:-[a-z]+)* )?(?:{NOUNS})\b(?! ?=)")

NEVER_ONE = {
    "{missing} entities": "a list of entities",
    "{side} examples": "a name",
    "{cls.__name__} options": "a name",
    "{where} names": "a verb",
    "{tuple(self.values.shape)} values": "a shape",
    "{depth} entries": "the blocks of a model, named by its configuration",
}
"""What stands before a plural and is no count that can be 1, with the reason."""


def plurals(source: str) -> Iterator[tuple[int, str]]:
    """The line and text of each count before a plural in an f-string."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            found = PLURAL.match(text.value)
            if found is None or not is_whole(value) or is_constant(value.value):
                continue
            yield value.lineno, f"{{{ast.unparse(value.value)}}}{found[0]}"


def is_whole(value: ast.FormattedValue) -> bool:
    """Whether ``value`` may be a whole number by its format: as it is, or with commas."""
    return value.conversion == -1 and (value.format_spec is None or ast.unparse(value.format_spec) in ("f','", "','"))


def is_constant(value: ast.expr) -> bool:
    """Whether ``value`` is a constant of a module: a bound, which is written for more than one."""
    return isinstance(value, ast.Name) and value.id.isupper()


def test_no_count_stands_before_a_bare_plural():
    found = {
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path in SOURCE.rglob("*.py")
        for line, text in plurals(path.read_text(encoding="utf-8"))
        if text not in NEVER_ONE
    }
    assert not found, "write counted(n, 'row') (core/words.py), which says 1 row and 2 rows"


def test_what_is_passed_over_is_there():
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    assert [text for text in NEVER_ONE if text not in source] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f'{n} rows'", ["{n} rows"]),
        ("f'{len(x):,} held-out tokens of it'", ["{len(x)} held-out tokens"]),
        ("f'{folder} holds tokens', f'{MOST} rows', f'{name!r} rows', f'{n} rowsets', f'{n} tokens='", []),
    ],
)
def test_counts_before_plurals_are_found(source: str, expected: list[str]):
    assert [text for _, text in plurals(source)] == expected


@pytest.mark.parametrize(
    ("n", "words", "expected"),
    [
        (1, ["thread"], "1 thread"),
        (0, ["thread"], "0 threads"),
        (1024, ["thread"], "1,024 threads"),
        (1, ["dictionary", "dictionaries"], "1 dictionary"),
        (2, ["dictionary", "dictionaries"], "2 dictionaries"),
    ],
)
def test_counted(n: int, words: list[str], expected: str):
    assert counted(n, *words) == expected
