"""Tokens as text that a person can read and no page or terminal can trip over.

A token of a byte-level vocabulary may hold part of a character, or the end of one and the start of the next. Tokens
are therefore turned into bytes first, and a **group** is the shortest run of tokens whose bytes start and end where a
character does (an extended grapheme cluster, Unicode annex 29: ``é``, ``漢``, ``👩‍💻`` are one each). A group is shown
once, whole; its activation is the largest of its tokens'. Nearly every group is a single token.

What cannot be shown as it is gets a name: bytes that belong to no character (a context may start inside one) are
``⟨E6 BC⟩``; control characters, invisible formatting and direction overrides are ``⟨U+202E⟩``. Newlines, tabs and
spaces stay what they are in ``printable`` text, and are symbols in ``visible`` text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import regex  # type: ignore[import-untyped]

from monosema.core.printable import WHITESPACE_SYMBOLS, printable, utf8

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Piece:
    """What one token stands for."""

    data: bytes
    """Its UTF-8 bytes, perhaps not a whole number of characters."""
    alone: bool = False
    """Whether it is shown by itself (a special token), never joined with its neighbours."""


class TokenTexts:
    """Text of token ids under one tokenizer; pieces are looked up once per distinct id."""

    def __init__(self, tokenizer: Any | None, special_token_ids: Collection[int] = ()) -> None:
        """``tokenizer`` is a transformers tokenizer, or None: tokens are then shown as ``⟨id⟩``."""
        self._tokenizer = tokenizer
        own = getattr(tokenizer, "all_special_ids", ()) if tokenizer is not None else ()
        self._special = frozenset(special_token_ids) | frozenset(own)
        self._added = frozenset(getattr(tokenizer, "added_tokens_decoder", {}))
        self._byte_of = _byte_alphabet() if tokenizer is not None and _is_byte_level(tokenizer) else None
        self._anchor = _anchor(tokenizer) if tokenizer is not None and self._byte_of is None else None
        self._pieces: dict[int, Piece] = {}

    def piece(self, token: int) -> Piece:
        """The bytes of a token id."""
        if token not in self._pieces:
            self._pieces[token] = self._find_piece(token)
        return self._pieces[token]

    def label(self, token: int) -> str:
        """A token by itself, printable."""
        return printable(self.piece(token).data)

    def context(self, tokens: Sequence[int]) -> list[str | None]:
        """Printable text of each token in its context; None where it belongs to the group of the one before."""
        return group_texts([self.piece(token) for token in tokens])

    def _find_piece(self, token: int) -> Piece:
        if self._tokenizer is None:
            return Piece(f"⟨{token}⟩".encode(), alone=True)
        raw = self._tokenizer.convert_ids_to_tokens(token)
        if raw is None or raw == "":  # a row of the embedding that the vocabulary does not fill
            return Piece(f"⟨{token}⟩".encode(), alone=True)
        if isinstance(raw, bytes):
            return Piece(raw)
        if token in self._special or token in self._added:
            return Piece(utf8(raw), alone=token in self._special)
        if self._byte_of is not None and all(character in self._byte_of for character in raw):
            return Piece(bytes(self._byte_of[character] for character in raw))
        byte = _BYTE_TOKEN.fullmatch(raw)
        if byte and self._decoded(token) != raw:
            return Piece(bytes.fromhex(byte[1]))
        text = raw if self._byte_of is not None else self._decoded(token)
        return Piece(utf8(text)) if text else Piece(f"⟨{token}⟩".encode(), alone=True)

    def _decoded(self, token: int) -> str:
        """The text a token adds after an ordinary one: decoders drop the space of the first token of a text."""
        if self._anchor is not None:
            before = _decode(self._tokenizer, [self._anchor])
            both = _decode(self._tokenizer, [self._anchor, token])
            if both.startswith(before):
                return both[len(before) :]
        return _decode(self._tokenizer, [token])


def group_texts(pieces: Sequence[Piece]) -> list[str | None]:
    """Printable text of each group at its first piece, None at the others; see the top of the file."""
    texts: list[str | None] = []
    start = 0
    while start < len(pieces):
        stop = start + 1
        if pieces[start].alone:
            texts.append(printable(pieces[start].data))
        else:
            while stop < len(pieces) and not pieces[stop].alone:
                stop += 1
            texts += _group_run([piece.data for piece in pieces[start:stop]])
        start = stop
    return texts


def _group_run(parts: list[bytes]) -> list[str | None]:
    joined = b"".join(parts)
    if joined.isascii() and b"\r" not in joined:
        return [printable(part) for part in parts]
    # a byte that belongs to no character becomes one surrogate, so lengths in bytes are kept
    ends, at = {0}, 0
    for cluster in regex.findall(r"\X", joined.decode("utf-8", "surrogateescape")):
        at += len(cluster.encode("utf-8", "surrogateescape"))
        ends.add(at)
    texts: list[str | None] = []
    first, start, stop = 0, 0, 0
    for index, part in enumerate(parts):
        stop += len(part)
        texts.append(None)
        if stop in ends:
            texts[first] = printable(joined[start:stop])
            first, start = index + 1, stop
    return texts


def visible(text: str) -> str:
    """Printable text with white space as symbols (``↵``, ``⇥``, ``·``): one line, whatever it was."""
    return "".join(WHITESPACE_SYMBOLS.get(character, character) for character in text)


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al. 2019): printable Latin-1
    stands for itself, the other bytes follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether tokens are strings of that alphabet: those of a text that is not ASCII then spell its UTF-8."""
    alphabet = _byte_alphabet()
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("é漢", add_special_tokens=False))
    characters = "".join(token for token in tokens if isinstance(token, str))
    if not all(character in alphabet for character in characters):
        return False
    return "é漢".encode() in bytes(alphabet[character] for character in characters)


def _anchor(tokenizer: Any) -> int | None:
    tokens = tokenizer.encode("a", add_special_tokens=False)
    return tokens[-1] if tokens else None


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
