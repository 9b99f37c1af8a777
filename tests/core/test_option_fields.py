"""Fields that are recorded: which ones, in what order, and that a later one changes no record until it is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

from monosema.core.foreign import is_switch, is_whole
from monosema.core.option_fields import by_caller, chosen, file_fields, from_file, marked, recorded


@dataclass(frozen=True, kw_only=True)
class Options:
    size: int = from_file("how many", is_whole, default=3)
    alone: str = "here"
    names: dict[str, int] = from_file("by name", is_switch, default_factory=dict)
    mode: str | None = by_caller(default=None)
    later: tuple[int, ...] | None = from_file("added later", is_switch, default=None)
    free: list[int] = field(default_factory=list)


def test_a_file_decides_what_is_marked_for_it_and_the_caller_what_is_marked_at_all():
    assert list(file_fields(Options)) == ["size", "names", "later"]
    assert file_fields(Options)["size"].use == "how many"
    assert file_fields(Options)["size"].refuses(0.5) == "it is no whole number"
    assert marked(Options) == ("size", "names", "mode", "later")
    assert Options() == Options(size=3, names={})


def test_what_is_at_its_default_is_not_chosen():
    assert chosen(Options()) == {}
    assert chosen(Options(alone="there", names={"a": 1}, size=3)) == {"alone": "there", "names": {"a": 1}}
    assert chosen(Options(alone="there", size=4), ("size", "mode")) == {"size": 4}


def test_later_fields_are_recorded_where_they_are_chosen():
    assert recorded(Options(alone="there"), ("mode", "size")) == {"mode": None, "size": 3}
    assert list(recorded(Options(), ("mode", "size"))) == ["mode", "size"], "in the order asked for"
    whole = Options(names={"a": 1}, later=(1, 2))
    assert recorded(whole, ("size",)) == {"size": 3, "names": {"a": 1}, "later": [1, 2]}
    assert recorded(whole, ("size",), apart=("names",)) == {"size": 3, "later": [1, 2]}
