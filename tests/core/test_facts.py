"""What objects print of themselves."""

from monosema.core.facts import Facts, shown_as_facts
from monosema.core.words import counted


@shown_as_facts
class Thing:
    def _facts(self) -> Facts:
        return Facts("a <thing>", {"size": 3, "unknown": None, "name": "<b>\x1b[31m\n"})


def test_facts_are_lines_and_a_table_that_nothing_gets_out_of():
    assert repr(Thing()) == "a <thing>\n  size  3\n  name  <b>⟨U+001B⟩[31m⟨U+000A⟩"
    html = Thing()._repr_html_()
    assert "a &lt;thing&gt;" in html
    assert "&lt;b&gt;⟨U+001B⟩" in html
    assert "<b>" not in html
    assert "unknown" not in html


def test_things_are_counted_in_plain_english():
    assert [counted(n, "thread") for n in (0, 1, 2, 1024)] == ["0 threads", "1 thread", "2 threads", "1,024 threads"]
    assert counted(2, "dictionary", "dictionaries") == "2 dictionaries"
