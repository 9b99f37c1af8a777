"""Text in which everything can be seen and nothing acts on its surroundings."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monosema.core.printable import encodable, printable, terminal_line, terminal_text

ZWJ_EMOJI = "👩\u200d💻"


@given(st.binary(max_size=12))
def test_printable_of_any_bytes_holds_nothing_that_acts(data: bytes):
    text = printable(data)
    text.encode()
    joiners = "\u200c\u200d" + "".join(map(chr, range(0xE0020, 0xE0080)))
    for character in text:
        assert character in "\n\r\t" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.category(character) != "Cf" or character in joiners


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x00\x1b\x7f", "⟨U+0000⟩⟨U+001B⟩⟨U+007F⟩"),
        ("\u202ex\u202c", "⟨U+202E⟩x⟨U+202C⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\u200d", "⟨U+200D⟩"),
        ("\x85", "⟨U+0085⟩"),
        ("\ud800", "⟨ED A0 80⟩"),
        ("\ufeff", "⟨U+FEFF⟩"),
        ("\ufffe", "⟨U+FFFE⟩"),
        ("\ufffd", "\ufffd"),
        ("a\r\n\tb ", "a\r\n\tb "),
        (ZWJ_EMOJI, ZWJ_EMOJI),
    ],
)
def test_printable_by_hand(text: str, shown: str):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "⟨U+001B⟩[31mred⟨U+001B⟩[0m"),
        ("\x9b2J\x00\x07\x7f", "⟨U+009B⟩2J⟨U+0000⟩⟨U+0007⟩⟨U+007F⟩"),
        ("fve 1.0\rfve 0.1", "fve 1.0⟨U+000D⟩fve 0.1"),
        ("a\u202eb\u2066c\u200bd\ufeff", "a⟨U+202E⟩b⟨U+2066⟩c⟨U+200B⟩d⟨U+FEFF⟩"),
        ("hook\u200dname", "hook⟨U+200D⟩name"),
        ("\u200d", "⟨U+200D⟩"),
        (ZWJ_EMOJI, ZWJ_EMOJI),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("a\U000e0041\u3164\u2800", "a⟨U+E0041⟩⟨U+3164⟩⟨U+2800⟩"),
        ("\ud800x\udcff", "⟨ED A0 80⟩x⟨ED B3 BF⟩"),
        ("größe → 漢", "größe → 漢"),
        ("one\n\ttwo", "one\n\ttwo"),
    ],
)
def test_a_terminal_is_shown_nothing_that_acts(text: str, shown: str):
    assert terminal_text(text) == shown
    assert terminal_line(text) == shown.replace("\n", "⟨U+000A⟩").replace("\t", "⟨U+0009⟩")
    assert terminal_text(shown) == shown


def test_long_texts_keep_their_ends():
    shown = terminal_text("a" * 500 + "b" * 500, 100)
    assert shown == "a" * 75 + "… (900 characters left out) …" + "b" * 25
    assert terminal_text("a" * 100, 100) == "a" * 100
    assert len(terminal_line("\x1b" * 10**6)) < 10_000


def test_any_text_can_be_printed_in_any_encoding():
    text = terminal_text("a\ud800\x1b→漢")
    text.encode()
    assert encodable(text, "ascii").isascii()
    assert encodable("größe", "latin-1") == "größe"
    assert encodable("漢", "ascii") == "\\u6f22"
