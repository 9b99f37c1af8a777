"""Text of anybody's that a person can read and no page or terminal can trip over: what cannot be shown gets a name.

Bytes that belong to no character are ``⟨E6 BC⟩``; control characters, invisible formatting and direction overrides are
``⟨U+202E⟩``. Newlines, tabs and spaces stay what they are.
"""

from __future__ import annotations

import functools
import re
import unicodedata

WHITESPACE_SYMBOLS = {"\n": "↵", "\r": "⇤", "\t": "⇥", " ": "·", "\u00a0": "⍽", "\u202f": "⍽", "\u3000": "□"}
"""How white space is shown where it must be seen."""

_LONE_BYTES = re.compile("[\udc80-\udcff]+")
_JOINERS = "\u200c\u200d"


@functools.lru_cache(maxsize=2**16)
def printable(text: str | bytes) -> str:
    """Text in which everything but white space can be seen and nothing acts on its surroundings."""
    if isinstance(text, str):
        text = utf8(text)
    decoded = text.decode("utf-8", "surrogateescape")
    if decoded.isprintable():
        return decoded
    named = _LONE_BYTES.sub(lambda found: f"⟨{found[0].encode('utf-8', 'surrogateescape').hex(' ').upper()}⟩", decoded)
    within_cluster = len(decoded) > 1
    return "".join(_printable_character(character, within_cluster) for character in named)


def utf8(text: str) -> bytes:
    """UTF-8 of any Python string; lone surrogates become bytes of no character."""
    return text.encode("utf-8", "surrogatepass")


def _printable_character(character: str, within_cluster: bool) -> str:
    code = ord(character)
    if character in WHITESPACE_SYMBOLS:
        return character
    if within_cluster and (character in _JOINERS or 0xE0020 <= code <= 0xE007F):  # they shape scripts and emoji
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or (code & 0xFFFE) == 0xFFFE:
        return f"⟨U+{code:04X}⟩"
    return character
