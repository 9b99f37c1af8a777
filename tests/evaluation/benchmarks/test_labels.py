"""Labels of Python source, worked out by hand."""

from __future__ import annotations

import itertools
import keyword

import pytest

from monosema.core.errors import DataError
from monosema.data.stdlib import stdlib_modules
from monosema.evaluation.benchmarks import PYTHON_LABELS

SNIPPET = '''"""Dôc."""
import os.path  # why

class Dog(Base):
    # none
    def bark(self, n=3):
        """Says."""
        """Not one."""
        return os.getenv("X" "Y",
            n) + f"{n + 1:2}"
'''


def labelled_parts(text: str) -> dict[str, list[str]]:
    """For each label the longest parts whose every character, as a token of its own, has it."""
    labels = PYTHON_LABELS.of(text, [(i, i + 1) for i in range(len(text))])
    parts: dict[str, list[str]] = {}
    for number, name in enumerate(PYTHON_LABELS.names):
        runs = itertools.groupby(range(len(text)), key=lambda i, number=number: bool(labels[i, number]))
        parts[name] = ["".join(text[i] for i in run) for has, run in runs if has]
    return parts


def test_a_snippet_by_hand() -> None:
    assert labelled_parts(SNIPPET) == {
        "docstring": ['"""Dôc."""', '"""Says."""'],
        "string": ['"""Not one."""', '"X"', '"Y"', 'f"{n + 1:2}"'],
        "comment": ["# why", "# none"],
        "keyword": ["import", "class", "def", "return"],
        "function_name": ["bark"],
        "class_name": ["Dog"],
        "parameter": ["self", "n"],
        "call": ["getenv"],
        "attribute": ["path"],
        "import": ["import os.path"],
        "number": ["3"],
        "operator": [".", "(", "):", "(", ",", "=", "):", ".", "(", ",", ")", "+"],
        "indentation": ["    ", "        ", "        ", "        "],
    }


def test_a_token_has_the_labels_of_its_first_character_that_is_not_white() -> None:
    text = "if x:\n    return 1"
    offsets = [(0, 2), (2, 4), (4, 10), (10, 16), (16, 18), (18, 18), (5, 6), (5, 9)]
    labels = PYTHON_LABELS.of(text, offsets)
    names = [{n for n, has in zip(PYTHON_LABELS.names, row, strict=True) if has} for row in labels.tolist()]
    assert names == [{"keyword"}, set(), {"operator"}, {"keyword"}, {"number"}, set(), set(), {"indentation"}]


def test_positions_count_characters_where_others_take_more_bytes() -> None:
    assert labelled_parts("def f(a='äöü', b=1):\n    '''ß'''\n    x = '😀'; y = 2\n")["docstring"] == ["'''ß'''"]
    parts = labelled_parts("x = '😀é'; y = lambda ü: 2\n")
    assert parts["parameter"] == ["ü"]
    assert parts["number"] == ["2"]


def test_an_f_string_is_a_string_whatever_is_in_it() -> None:
    assert labelled_parts("x = f'{g(1)} {f\"{2}\"}'  # 3\n") == {
        name: {"string": ["f'{g(1)} {f\"{2}\"}'"], "comment": ["# 3"], "operator": ["="]}.get(name, [])
        for name in PYTHON_LABELS.names
    }


def test_no_token_has_no_label() -> None:
    assert PYTHON_LABELS.of("", []).shape == (0, len(PYTHON_LABELS.names))


def test_the_standard_library_can_be_labelled() -> None:
    for module in stdlib_modules()[:60:6]:
        text = module.text
        parts = [(name, text[start:end]) for name, start, end in PYTHON_LABELS.spans(text)]
        assert {part for name, part in parts if name == "keyword"} <= set(keyword.kwlist)
        assert all(part.isspace() or not part for name, part in parts if name == "indentation")
        assert all(part[:1] == "#" for name, part in parts if name == "comment")
        assert all(part[-1] in "'\"" for name, part in parts if name in ("docstring", "string"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "is not Python source"),
        ("x = 1\r\n", r"replace"),
        ("'''open", "is not Python source"),
        ("\0", "not"),
    ],
)
def test_what_is_not_python_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PYTHON_LABELS.of(text, [(0, 1)])
