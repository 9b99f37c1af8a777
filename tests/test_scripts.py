"""The scripts that read the source's syntax tree find what they look for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from class_tests import SOURCE, class_tests, coder_classes, found_in
from count_assertions import counts_at, n_assertions, table

CODERS = """
class Dictionary(nn.Module, ABC): ...
class Trainable(Dictionary): ...
class SparseCoder(coders.Trainable): ...
class Other(nn.Module): ...
"""
CLASSES = frozenset({"Trainable", "SparseCoder"})


def test_a_coder_class_derives_from_the_interface() -> None:
    assert coder_classes({"coders/all.py": CODERS}) == CLASSES


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(x, SparseCoder)",
        "isinstance(x, coders.SparseCoder)",
        "isinstance(x, (str, SparseCoder))",
        "isinstance(x, str | SparseCoder)",
        "issubclass(kind, Trainable)",
        "type(x) is SparseCoder",
        "type(x) == SparseCoder",
        "SparseCoder is not type(x)",
        "type(x) in (SparseCoder, str)",
        "x.__class__ is SparseCoder",
        "type(x).__name__ == 'SparseCoder'",
        "x.variant == 'SAE'",
        "'SAE' != x.variant",
        "x.variant in ('SAE', 'Transcoder')",
        "x.variant == wanted",
    ],
)
def test_each_form_of_a_class_test_is_found(source: str) -> None:
    assert [line for line, _ in class_tests(f"\nif {source}: pass", CLASSES)] == [2]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("match x:\n case SparseCoder(): pass", 2),
        ("match x:\n case str() | coders.SparseCoder(d_in=4): pass", 2),
        ("match x.variant:\n case 'SAE': pass", 1),
        ("from monosema.coders import SparseCoder as C\nisinstance(x, C)", 2),
    ],
)
def test_patterns_and_other_names_are_found(source: str, line: int) -> None:
    assert [found for found, _ in class_tests(source, CLASSES)] == [line]


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(x, Other)",
        "isinstance(x, Dictionary)",
        "x: SparseCoder = SparseCoder(config)",
        "type(x) is Other",
        "print(x.variant, x.variant_words)",
        "options.variant == 'cross_layer_transcoder'",
        "match x:\n case Other(): pass",
    ],
)
def test_what_asks_no_coders_class_is_not_found(source: str) -> None:
    assert not [*class_tests(source, CLASSES)]


def test_tests_inside_the_room_of_coders_do_not_count() -> None:
    source = "isinstance(x, SparseCoder)"
    found = found_in({"coders/all.py": CODERS + source, "runs/make.py": source})
    assert found == ["runs/make.py:1: isinstance(x, SparseCoder)"]


def test_nothing_outside_coders_asks_which_class_a_dictionary_has() -> None:
    sources = {file.relative_to(SOURCE).as_posix(): file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.py")}
    assert {"SparseCoder", "CrossLayerTranscoder"} <= coder_classes(sources)
    assert found_in(sources) == []


ASSERTIONS = """
@pytest.mark.parametrize("n", [1, 2, 3])
def test(n):
    assert n
    with pytest.raises(ValueError, match="no"):
        f()
    with pytest.warns(UserWarning):
        f()
    raise AssertionError("assert")
"""


def test_assertions_are_counted_once_each() -> None:
    assert n_assertions(ASSERTIONS) == 3


def test_assertions_of_two_commits(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

    tests = tmp_path / "tests"
    tests.mkdir()
    git("init", "-q")
    for source in (ASSERTIONS, "assert 1"):
        (tests / "test_a.py").write_text(source)
        (tests / "test_same.py").write_text("assert 2")
        (tests / "notes.txt").write_text("assert 3")
        git("add", ".")
        git("commit", "-qm", "one")
    before, after = counts_at("HEAD~1", tmp_path), counts_at("HEAD", tmp_path)
    assert before == {"tests/test_a.py": 3, "tests/test_same.py": 1}
    assert table(before, after).splitlines() == [
        "     3      1     -2  tests/test_a.py",
        "     4      2     -2  all files",
    ]
