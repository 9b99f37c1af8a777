"""Tokens as text: characters whole, nothing invisible, nothing that acts."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from features_tiny import HOSTILE, ZWJ_EMOJI, byte_level_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monosema.features.texts import Piece, TokenTexts, group_texts, printable, visible


def pieces(*parts: bytes) -> list[Piece]:
    return [Piece(part) for part in parts]


@pytest.mark.parametrize("character", ["é", "漢", "e\u0301", ZWJ_EMOJI, "👍🏽", "🇩🇪", "1\ufe0f\u20e3", "नि"])
def test_a_character_split_over_tokens_is_shown_once_and_whole(character: str):
    tokenizer = byte_level_tokenizer([], n_tokens=257)  # bytes only
    tokens = tokenizer.encode(f"a{character}b", add_special_tokens=False)
    assert len(tokens) == 2 + len(character.encode())
    texts = TokenTexts(tokenizer).context(tokens)
    assert texts == ["a", character, *[None] * (len(character.encode()) - 1), "b"]


def test_tokens_that_share_characters_are_one_group():
    han = "漢字".encode()
    # the end of one character and the start of the next in one token
    assert group_texts(pieces(b"a", han[:2], han[2:4], han[4:], b"b")) == ["a", "漢字", None, None, "b"]
    assert group_texts(pieces(b"a" + han[:1], han[1:3] + b"b", b"c")) == ["a漢b", None, "c"]
    assert group_texts(pieces(b"x\r", b"\n", b"y")) == ["x\r\n", None, "y"]


def test_bytes_of_no_character_are_named_and_stay_apart():
    han = "漢".encode()
    assert group_texts(pieces(han[1:2], han[2:], b"a")) == ["⟨BC⟩", "⟨A2⟩", "a"]  # a context that starts inside one
    assert group_texts(pieces(b"a", han[:2])) == ["a", "⟨E6 BC⟩"]  # and one that ends inside one
    assert group_texts(pieces(b"\xff\xfe", b"\xed\xa0\x80")) == ["⟨FF FE⟩", "⟨ED A0 80⟩"]


def test_special_tokens_never_join_their_neighbours():
    first, second = "é".encode()[:1], "é".encode()[1:]
    parts = [Piece(first), Piece(b"<s>", alone=True), Piece(second), Piece(b"e"), Piece("\u0301".encode(), alone=True)]
    assert group_texts(parts) == ["⟨C3⟩", "<s>", "⟨A9⟩", "e", "\u0301"]


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.lists(st.integers(0, 80), max_size=30))
def test_any_text_cut_anywhere_reads_as_it_did(text: str, cuts: list[int]):
    data = text.encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[start:stop] for start, stop in pairwise(edges)]
    texts = group_texts(pieces(*parts))
    assert len(texts) == len(parts)
    assert texts[0] is not None
    shown = "".join(each for each in texts if each is not None)
    assert "⟨C3" not in shown.replace(text, "")
    if text.isprintable():
        assert shown == text
    json.dumps(shown).encode("ascii")
    shown.encode()  # no surrogate


def test_white_space_is_visible_on_one_line():
    assert visible("\r\n  def\tx\u00a0y") == "⇤↵··def⇥x⍽y"


def test_byte_level_text_is_what_the_tokenizer_read():
    tokenizer = byte_level_tokenizer(HOSTILE)
    texts = TokenTexts(tokenizer)
    for line in HOSTILE:
        shown = texts.context(tokenizer.encode(line, add_special_tokens=False))
        assert "".join(each for each in shown if each is not None) == printable(line)


def test_labels_of_byte_level_tokens():
    tokenizer = byte_level_tokenizer(["hello hello hello"], n_tokens=270)
    texts = TokenTexts(tokenizer)
    labels = [texts.label(token) for token in range(len(tokenizer))]
    assert labels[0] == "<|endoftext|>"
    assert texts.piece(0).alone
    assert " hello" in labels
    assert "⟨E6⟩" in labels
    assert texts.label(9999) == "⟨9999⟩"


def test_added_tokens_are_read_as_written():
    tokenizer = byte_level_tokenizer([], n_tokens=257)
    tokenizer.add_tokens(["    ", "é"])
    texts = TokenTexts(tokenizer)
    assert [texts.label(token) for token in tokenizer.convert_tokens_to_ids(["    ", "é"])] == ["    ", "é"]


def test_sentencepiece_like_tokens_keep_their_space_and_their_bytes():
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "b": 4, "▁b": 5}
    vocabulary |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    tokens = fast.encode("a b漢b", add_special_tokens=False)
    assert TokenTexts(fast).context(tokens) == [" a", " b", "漢", None, None, "b"]


def test_wordpiece_tokens_join_without_their_marks():
    vocabulary = {"[UNK]": 0, "a": 1, "sing": 2, "##ing": 3}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert TokenTexts(fast).context([2, 3, 1, 0]) == [" sing", "ing", " a", "[UNK]"]


def test_a_tokenizer_may_return_bytes_or_lone_surrogates():
    words = {0: b"\xe6\xbc", 1: b"\xa2", 2: "\udc00x", 3: ""}
    fake = SimpleNamespace(
        all_special_ids=[],
        convert_ids_to_tokens=lambda token: words[token] if isinstance(token, int) else [],
        encode=lambda text, add_special_tokens: [],
        decode=lambda tokens, **options: words[tokens[0]],
    )
    assert TokenTexts(fake).context([0, 1, 2, 3]) == ["漢", None, "⟨ED B0 80⟩x", "⟨3⟩"]
    assert TokenTexts(None).context([7]) == ["⟨7⟩"]
