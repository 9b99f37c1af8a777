"""Text in which everything can be seen and nothing acts on its surroundings."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monosema.core.printable import printable

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
