"""Text of anybody's that a person can read and no page or terminal can trip over: what cannot be shown gets a name.

Bytes that belong to no character are ``⟨E6 BC⟩``; control characters, invisible formatting and direction overrides are
``⟨U+202E⟩``. Newlines, tabs and spaces stay what they are.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Iterable

from monosema.core.words import counted

WHITESPACE_SYMBOLS = {"\n": "↵", "\r": "⇤", "\t": "⇥", " ": "·", "\u00a0": "⍽", "\u202f": "⍽", "\u3000": "□"}
"""How white space is shown where it must be seen."""

MOST_VALUE = 1_000
"""Characters shown of one value from a file."""
MOST_MESSAGE = 10_000
"""Characters of one error or line of a log."""
_LONE_BYTES = re.compile("[\udc80-\udcff]+")
_JOINERS = "\u200c\u200d"
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0000-\U000e0fff]"
)
"""Characters without a picture that are no control characters: fillers, blanks, tags and selectors of variants."""


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


def terminal_text(text: str, most: int | None = None) -> str:
    """Text of several lines for a terminal: all that cannot be seen, or moves the cursor, is shown by name.

    Newlines and tabs stay. Joiners stay between characters of scripts and emoji, which they shape, and are named beside
    Latin ones. Of more than ``most`` characters the middle is left out, and counted.
    """
    if most is not None and len(text) > most:
        head, tail = 3 * most // 4, most // 4
        text = f"{text[:head]}… ({counted(len(text) - head - tail, 'character')} left out) …{text[-tail:]}"
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    shown = printable.__wrapped__(text)  # long texts are not worth remembering
    shown = _INVISIBLE.sub(lambda found: _name(found[0]), shown.replace("\r", _name("\r")))
    return re.sub(f"[{_JOINERS}]", lambda found: _joiner(shown, found.start()), shown)


def terminal_line(text: str, most: int = MOST_VALUE) -> str:
    """``terminal_text`` of one value from a file, whose newlines and tabs are named too: it cannot begin a line."""
    shown = terminal_text(text, most)
    return shown if shown.isprintable() else re.sub("[\n\t]", lambda found: _name(found[0]), shown)


def terminal_lines(lines: Iterable[str]) -> str:
    """The lines of a table or a report, each kept to one line."""
    return "\n".join(terminal_line(line, MOST_MESSAGE) for line in lines)


def escaped(text: str) -> str:
    """``terminal_line`` as HTML, for the tables of notebooks."""
    return html.escape(terminal_line(text, MOST_MESSAGE))


def encodable(text: str, encoding: str | None) -> str:
    """``text`` with escapes in the place of characters that ``encoding`` does not have, so that it can be printed."""
    known = encoding or "utf-8"
    return text.encode(known, "backslashreplace").decode(known)


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
        return _name(character)
    return character


def _name(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"


def _joiner(text: str, place: int) -> str:
    """A joiner where it joins something, else its name."""
    beside = text[place - 1 : place] + text[place + 1 : place + 2]
    return text[place] if len(beside) == 2 and min(beside) > "\u02ff" else _name(text[place])
