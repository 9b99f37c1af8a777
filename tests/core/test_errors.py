"""Errors offer the nearest names."""

import pickle

import pytest

from monosema.core import errors
from monosema.core.errors import UnknownNameError, UserError, nearest_names, unknown_name

HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"]


def test_nearest_names_come_best_first() -> None:
    assert nearest_names("blocks.0.hook_resid_pst", HOOKS)[0] == "blocks.0.hook_resid_post"
    assert nearest_names("zzz", HOOKS) == []
    assert len(nearest_names("aaaa", [f"aaa{i}" for i in range(9)], n=2)) == 2


def test_unknown_name_offers_near_ones() -> None:
    error = unknown_name("hook name", "blocks.0.hook_mlp_oot", iter(HOOKS))
    assert isinstance(error, UnknownNameError)
    assert str(error).startswith("unknown hook name 'blocks.0.hook_mlp_oot'; did you mean 'blocks.0.hook_mlp_out'")


def test_unknown_name_lists_what_there_is_when_nothing_is_near() -> None:
    assert str(unknown_name("format", "zzz", ["a", "b"])) == "unknown format 'zzz'; known: 'a', 'b'"
    many = str(unknown_name("format", "zzz", (f"name{i}" for i in range(13))))
    assert many.endswith("'name11' …")
    assert "name12" not in many


@pytest.mark.parametrize("name", [n for n, e in vars(errors).items() if isinstance(e, type) and n.endswith("Error")])
def test_all_are_value_errors_of_one_family(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, UserError)
    assert issubclass(error, ValueError)


def test_messages_show_nothing_that_acts_and_keep_their_lines_and_their_length() -> None:
    error = errors.FileError("a\x1b[2J\u202eb\ud800:\n  the fix")
    assert str(error) == "a⟨U+001B⟩[2J⟨U+202E⟩b⟨ED A0 80⟩:\n  the fix"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301
    long = str(errors.DataError("x" * 10**6 + "; the fix"))
    assert len(long) < 10_100 and long.endswith("; the fix")
