"""Which documents are held out: never by a file's name, at least a context where there are two, alike from every way
of reading."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from data_tiny import BOS, word_tokenizer, words

from monosema.data import Packing, document_reader, heldout, load_tokens, pretokenize
from monosema.data.file_formats import PIECE_CHARACTERS, named_by_text
from monosema.data.heldout import HeldoutRule, choose_by_hash
from monosema.data.packed import writer
from monosema.data.stdlib import is_heldout_name, name_hash

SIZE = 8
SHORT = words(4, 5, 6)


def texts(n: int, length: int = 12) -> list[str]:
    """Documents of ``length`` tokens, all different."""
    return [
        words(*((4 + (i + k * (i + 1)) % 27) for k in range(length - 2)), 4 + i % 27, 4 + i // 27) for i in range(n)
    ]


def load(source, fraction: float = 0.02, size: int = SIZE, **options):
    return load_tokens(source, word_tokenizer(), size, heldout_fraction=fraction, **options)


def rows(split) -> list[tuple[int, ...]]:
    return [tuple(row) for row in split.contexts[:].tolist()]


@pytest.mark.parametrize(("n", "fraction", "held"), [(2, 0.02, 1), (10, 0.02, 1), (50, 0.1, 5), (60, 0.75, 45)])
def test_of_few_documents_the_share_is_counted(n, fraction, held):
    tokens = load(texts(n), fraction)
    assert tokens.record["n_heldout_documents"] == held
    assert tokens.heldout.n_contexts > 0
    lowest = sorted(texts(n), key=lambda text: name_hash(named_by_text(text).name))[:held]
    kept = [text for text in texts(n) if text in lowest]
    assert rows(tokens.heldout) == rows(load(kept, 0.0).train), "the documents with the lowest hashes"


def test_of_many_documents_those_are_held_out_whose_hash_is_below_the_share(monkeypatch):
    monkeypatch.setattr(heldout, "WINDOW_DOCUMENTS", 20)
    documents = texts(60)
    held = [text for text in documents if is_heldout_name(named_by_text(text).name, 0.2)]
    assert rows(load(documents, 0.2).heldout) == rows(load(held, 0.0).train)
    assert load(documents, 0.2).record["heldout_rule"] == {
        "below": 0.2, "names": [], "divided": None, "start": 0, "stop": None,
    }  # fmt: skip
    tiny = load(documents, 1e-9)
    assert tiny.record["n_heldout_documents"] == 1, "the lowest of the first ones, where no hash is below the share"
    first = min((named_by_text(text).name for text in documents[:20]), key=name_hash)
    assert tiny.record["heldout_rule"]["names"] == [first]


def test_documents_are_held_out_until_they_fill_a_context():
    stories = texts(33, length=5)
    tokens = load(stories, 0.02, size=30)
    assert tokens.heldout.n_contexts == 1
    assert tokens.record["n_heldout_documents"] == 5, "five of five tokens and four marks between them begin with BOS"
    assert tokens.train.n_contexts == 5


@pytest.mark.parametrize("mode", ["packed", "windows"])
@pytest.mark.parametrize("copies", [1, 3])
def test_of_one_document_the_last_part_is_held_out(mode, copies):
    text = texts(1, 100)[0]
    tokens = load([text] * copies, 0.1, packing=Packing(mode=mode))
    ids = word_tokenizer()(text, add_special_tokens=False)["input_ids"]
    start = 100 - 10 * copies  # a tenth of all tokens
    assert tokens.record["heldout_rule"]["start"] == start
    found = [t for row in rows(tokens.heldout) for t in row if t > 3]
    assert found == (ids[start:] * copies)[: len(found)]
    assert len(found) >= 7
    trained = [t for row in rows(tokens.train) for t in row if t > 3]
    assert trained == (ids[:start] * copies)[: len(trained)]
    assert len(trained) > start * copies - 7


def test_a_long_document_beside_a_short_one_gives_its_end():
    document = texts(1, 40)[0]
    tokens = load([document, SHORT], 0.1)
    assert tokens.record["heldout_rule"]["divided"] == named_by_text(document).name
    assert rows(tokens.heldout) == [(BOS, *word_tokenizer()(document)["input_ids"][-7:])]
    assert tokens.train.n_contexts == 5, "33 and 3 tokens, a begin token each and one more between them"


def test_what_cannot_be_divided_is_said_at_once(caplog):
    with caplog.at_level(logging.WARNING):
        tokens = load([words(*range(4, 14))], 0.1)
    assert tokens.heldout.n_contexts == 0
    assert "nothing is held out: the text has too few documents to fill a context of 8 tokens" in caplog.text
    caplog.clear()
    whole = load(texts(5), 0.0)
    assert whole.heldout.n_contexts == 0
    assert not caplog.records, "as it was asked for"
    assert whole.how_to_hold_out == "load_tokens(..., heldout_fraction=0.02) sets some text aside"


def test_the_split_does_not_depend_on_the_names_of_files(tmp_path: Path):
    text = "".join(f"{words(4 + i % 20, 5, 6 + i % 7)}\n" for i in range(12_000))
    assert len(text) > 4 * PIECE_CHARACTERS
    found = []
    for name in ("a.txt", "sub/another.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        found += [load(path), load(str(path.parent / "*.txt"))]
    assert len({tokens.train.fingerprint for tokens in found}) == 1
    assert len({tokens.heldout.fingerprint for tokens in found}) == 1
    assert len({tokens.record["text_sha256"] for tokens in found}) == 1
    assert found[0].heldout.n_contexts > 0


@pytest.mark.parametrize(
    "documents", [texts(30), texts(33, 5), texts(1, 100), [*texts(1, 40), SHORT], texts(2), texts(9) * 2]
)
@pytest.mark.parametrize("interrupted", [False, True])
def test_text_as_needed_and_on_disk_has_the_same_sides(documents, interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(document_reader, "BLOCK_DOCUMENTS", 6)
    whole, live = load(documents), load(documents, in_memory=False)
    assert rows(whole.heldout) == rows(live.heldout) != []
    assert live.record["heldout_rule"] == whole.record["heldout_rule"]
    assert live.train.fingerprint != load(documents, 0.3, in_memory=False).train.fingerprint
    seen = [t for block in live.train.read(0, 0, None) for row in block.contexts.ids.tolist() for t in row if t > 3]
    held = {words(*row[1:]) for row in rows(whole.heldout)}
    assert not any(text in words(*seen) for text in held)
    if interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(writer, "write_layout", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                pretokenize(documents, word_tokenizer(), SIZE, tmp_path, shard_bytes=100, progress=False)
    stored = pretokenize(documents, word_tokenizer(), SIZE, tmp_path, shard_bytes=100, progress=False)
    assert (stored.train.fingerprint, stored.heldout.fingerprint) == (
        whole.train.fingerprint,
        whole.heldout.fingerprint,
    )
    assert stored.record["heldout_rule"] == whole.record["heldout_rule"]


def test_modules_of_the_standard_library_are_chosen_by_their_hash_alone():
    names = [f"m{i}" for i in range(40)]
    below = [name for name in names if is_heldout_name(name, 0.2)]
    options = {"is_whole": True, "is_counted": False, "fills": lambda name: True}
    assert choose_by_hash(names, 0.2, **options) == HeldoutRule(below=0.2)
    assert 0 < len(below) != round(0.2 * len(names))
    none = choose_by_hash(names, 1e-9, **options)
    assert [name for name in names if none.concerns(name, heldout=True)] == [min(names, key=name_hash)]


def test_equal_documents_are_on_one_side():
    names = ["a", "a", "b", "c", "c"]
    rule = choose_by_hash(names, 0.4, is_whole=True, is_counted=True, fills=lambda name: True)
    held = [name for name in names if rule.concerns(name, heldout=True)]
    order = sorted(set(names), key=name_hash)
    cuts = [sum(names.count(name) for name in order[:n]) for n in (1, 2)]
    assert len(held) == min(cuts, key=lambda n: abs(n - 2))


def test_rows_of_ids_follow_the_same_rule():
    import datasets

    made = datasets.Dataset.from_dict({"input_ids": [[BOS, 4 + i % 20, 5 + i // 20] for i in range(50)]})
    tokens = load_tokens(made, word_tokenizer(), heldout_fraction=0.1)
    assert tokens.heldout.n_contexts == tokens.record["n_heldout_documents"] == 5
    again = load_tokens(made.select(range(49, -1, -1)), word_tokenizer(), heldout_fraction=0.1)
    assert sorted(rows(again.heldout)) == sorted(rows(tokens.heldout))
    assert torch.equal(load_tokens(made, None, heldout_fraction=0).train.contexts[:, 0], torch.zeros(50).int())
