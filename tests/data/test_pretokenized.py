"""Packed tokens on disk: what is read is what ``load_tokens`` makes of the text, whatever happened while writing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from data_tiny import SITES, word_tokenizer, words

import monosema as ms
from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import (
    ActivationStream,
    Mixture,
    Packing,
    Positions,
    TextSource,
    heldout,
    load_tokens,
    pretokenize,
    tokenise,
    tokens,
)
from monosema.data.packed import write, writer
from monosema.data.packed.contexts import StoredContexts

TEXTS = [words(*range(4 + i % 5, 12 + i % 7), 4 + i % 27, 4 + i // 27) for i in range(200)]
SIZE = 8


@pytest.fixture(autouse=True)
def small_and_unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches; and no power is lost here."""
    monkeypatch.setattr(tokenise, "BATCH_DOCUMENTS", 16)
    monkeypatch.setattr("os.fsync", lambda file: None)


def written(folder: Path, texts=TEXTS, tokenizer=None, **options):
    given = {"heldout_fraction": 0.2, "shard_bytes": 1000, "progress": False, **options}
    return pretokenize(texts, tokenizer or word_tokenizer(), SIZE, folder, **given)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("roles", [{}, {"cls_token": "<s>", "sep_token": "</s>"}, {"unk_token": "<unk>"}])
@pytest.mark.parametrize("fraction", [0.2, 0.0])
def test_a_folder_gives_what_its_text_gives(tmp_path, roles, fraction):
    tokenizer = word_tokenizer(**roles)
    expected = load_tokens(TEXTS, tokenizer, SIZE, heldout_fraction=fraction, max_documents=150)
    pretokenize(
        TEXTS, tokenizer, SIZE, tmp_path, heldout_fraction=fraction, max_documents=150, shard_bytes=1000, progress=False
    )
    found = load_tokens(str(tmp_path), tokenizer)
    for name in ("train", "heldout"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert isinstance(ours.contexts, StoredContexts)
        assert ours.contexts[:].dtype == torch.int32
        assert torch.equal(ours.contexts[:], theirs.contexts)
        assert (ours.fingerprint, ours.special_token_ids) == (theirs.fingerprint, theirs.special_token_ids)
        assert torch.equal(ours.rows_in_contexts(), theirs.row_mask().sum(1))
    own = {"source": str(tmp_path), "max_documents": None}
    assert {**expected.record, **own} == {key: found.record[key] for key in expected.record}
    assert found.record["pretokenized"]["max_documents"] == 150
    assert len(list((tmp_path / "train").glob("*.arrow"))) > 3
    assert (tmp_path / "heldout").exists() == (fraction > 0)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"packing": Packing(mode="windows")},
        {"packing": Packing(mode="truncate", document_tokens=5)},
        {"packing": Packing(mode="one_document")},
        {"packing": Packing(preset="transcoder_circuits"), "attend_across_documents": False},
        {"attend_across_documents": False},
        {"mixture": "stop"},
        {"mixture": "go_on", "attend_across_documents": False},
    ],
)
def test_every_way_of_packing_gives_what_the_text_gives(tmp_path, monkeypatch, options, interrupted):
    texts = [text if i % 3 == 0 else " ".join(text.split()[: 1 + i % 2]) for i, text in enumerate(TEXTS)]
    source, positions = texts, Positions(start=1, step=2)
    if "mixture" in options:
        parts = {"one": TextSource(source=texts[:90], weight=2), "other": TextSource(source=texts[90:])}
        source = Mixture(parts=parts, when_dry=options["mixture"])
    options = {key: value for key, value in options.items() if key != "mixture"}
    smaller = {**options, "shard_bytes": 200}
    if interrupted:
        with monkeypatch.context() as patch:
            killed_at(patch, writer, "write_shard", 4)
            with pytest.raises(Killed):
                written(tmp_path, source, **smaller)
    written(tmp_path, source, **smaller)
    expected = load_tokens(source, word_tokenizer(), SIZE, heldout_fraction=0.2, positions=positions, **options)
    found = load_tokens(tmp_path, word_tokenizer(), positions=positions, **options)
    for ours, theirs in ((found.train, expected.train), (found.heldout, expected.heldout)):
        assert torch.equal(ours.contexts[:], theirs.contexts)
        assert (ours.fingerprint, ours.n_tokens) == (theirs.fingerprint, theirs.n_tokens)
        assert torch.equal(ours.row_mask(), theirs.row_mask())
        assert torch.equal(ours.rows_in_contexts(), theirs.row_mask().sum(1))
        assert (ours.documents is None) == (theirs.documents is None)
        if theirs.documents is not None:
            assert ours.documents[:].dtype == theirs.documents.dtype
            assert torch.equal(ours.documents[:], theirs.documents)
    own = {"source": str(tmp_path)}
    shared = expected.record.keys() - {"mixture", "when_dry"}
    assert {**{key: expected.record[key] for key in shared}, **own} == {key: found.record[key] for key in shared}
    rows = datasets.load_from_disk(str(tmp_path))["train"]
    assert rows["input_ids"][:] == expected.train.contexts.tolist()


def test_contexts_are_indexed_like_a_tensor_and_copied(tmp_path):
    stored = written(tmp_path).train.contexts
    whole = load_tokens(TEXTS, word_tokenizer(), SIZE, heldout_fraction=0.2).train.contexts
    assert stored.shape == whole.shape
    assert stored.numel() == whole.numel()
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    for index in (order, order[:3], order[:0], slice(5, 90), slice(None, None, 7), slice(3, 3), 11, -1):
        assert torch.equal(stored[index], whole[index])
    for index in (torch.tensor([len(whole)]), torch.tensor([-1]), len(whole)):
        with pytest.raises(IndexError):
            stored[index]
    stored[:].zero_()
    assert torch.equal(stored[:], whole)


def test_nothing_but_a_chunk_is_ever_in_memory(tmp_path, model, monkeypatch):
    """Fingerprint, special tokens, order and epochs."""
    written(tmp_path)
    monkeypatch.setattr(tokens, "_TOKENS_AT_ONCE", 10 * SIZE)
    most = []
    taken = StoredContexts.__getitem__

    def watched(self, index):
        rows = taken(self, index)
        most.append(len(rows))
        return rows

    monkeypatch.setattr(StoredContexts, "__getitem__", watched)
    stream = ActivationStream(
        model, load_tokens(tmp_path, model.tokenizer), SITES[0], batch_size=16, chunk_contexts=12, epochs=2
    )
    assert sum(map(len, stream)) > 1000
    assert max(most) == 12
    whole = load_tokens(TEXTS, word_tokenizer(), SIZE, heldout_fraction=0.2).train
    assert torch.equal(stream.split.rows_in_contexts(), whole.row_mask().sum(1))


def test_datasets_reads_the_folder(tmp_path):
    tokens = written(tmp_path / "t")
    saved = datasets.load_from_disk(str(tmp_path / "t"))
    assert list(saved) == ["train", "heldout"]
    loaded = datasets.load_dataset(str(tmp_path / "t"), split="train", cache_dir=str(tmp_path / "cache"))
    alone = datasets.load_from_disk(str(tmp_path / "t" / "train"))
    for rows in (saved["train"], loaded, alone):
        assert rows.with_format("torch")["input_ids"][:].tolist() == tokens.train.contexts[:].tolist()
        assert rows.features["input_ids"].feature.dtype == "int32"
    streamed = datasets.load_dataset(str(tmp_path / "t"), split="heldout", streaming=True)
    assert [row["input_ids"] for row in streamed] == tokens.heldout.contexts[:].tolist()
    described = json.loads((tmp_path / "t" / "sae_lens.json").read_text())
    assert {key: described[key] for key in ("context_size", "begin_batch_token", "sequence_separator_token")} == {
        "context_size": SIZE,
        "begin_batch_token": 0,
        "sequence_separator_token": 0,
    }


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def killed_at(monkeypatch, module, name: str, call: int) -> None:
    original, calls = getattr(module, name), iter(range(1, 1000))

    def dying(*arguments, **options):
        if next(calls) == call:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, dying)


@pytest.mark.parametrize("place", ["before a shard", "before its record", "before the end"])
@pytest.mark.parametrize("call", [1, 2, 6])
def test_an_interrupted_folder_goes_on_to_the_same_bytes(tmp_path, monkeypatch, place, call):
    written(tmp_path / "whole")
    with monkeypatch.context() as patch:
        if place == "before a shard":
            killed_at(patch, writer, "write_shard", call)
        elif place == "before its record":
            killed_at(patch, writer.Manifest, "write", call)
        else:
            killed_at(patch, writer, "write_layout", 1)
        with pytest.raises(Killed):
            written(tmp_path / "killed")
    if (tmp_path / "killed" / "monosema.json").exists():
        with pytest.raises(FileError, match=r"are not finished .* goes on from there"):
            load_tokens(tmp_path / "killed", None)
    written(tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_what_was_packed_is_not_tokenised_again(tmp_path, monkeypatch):
    seen: list[str] = []
    encode = tokenise.encode

    def watched(tokenizer, texts):
        seen.extend(filter(None, texts))
        return encode(tokenizer, texts)

    monkeypatch.setattr(tokenise, "encode", watched)
    with monkeypatch.context() as patch:
        killed_at(patch, writer, "write_layout", 1)
        with pytest.raises(Killed):
            written(tmp_path)
    assert sorted(seen) == sorted(TEXTS)
    seen.clear()
    written(tmp_path)
    assert 0 < len(seen) < len(TEXTS) / 4, "what follows the last shard of each side"
    seen.clear()
    written(tmp_path)
    load_tokens(tmp_path, word_tokenizer())
    assert not seen


@pytest.mark.parametrize("change", ["another", "fewer"])
def test_another_text_is_noticed_when_it_goes_on(tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        killed_at(patch, writer, "write_layout", 1)
        with pytest.raises(Killed):
            written(tmp_path, TEXTS[:100], shard_bytes=200)
    other = {"another": [words(9, 9), *TEXTS[1:]], "fewer": TEXTS[:20]}[change]
    with pytest.raises(DataError, match=r"holds other text than when .* was begun"):
        written(tmp_path, other, shard_bytes=200)
    assert written(tmp_path, TEXTS[:100], shard_bytes=200).record["n_documents"] == 100


def test_text_that_grew_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "WINDOW_DOCUMENTS", 20)
    written(tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_at(patch, writer, "write_layout", 1)
        with pytest.raises(Killed):
            written(tmp_path / "grown", TEXTS[:100])
    written(tmp_path / "grown")
    assert content(tmp_path / "grown") == content(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "flipped", "deleted", "replaced", "another"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    written(tmp_path)
    shard = tmp_path / "train" / "data-00001.arrow"
    data = bytearray(shard.read_bytes())
    if damage == "deleted":
        shard.unlink()
    elif damage == "another":
        shutil.copy(tmp_path / "train" / "data-00002.arrow", shard)
    else:
        data[len(data) // 2] ^= 4
        shard.write_bytes(data[:-9] if damage == "cut" else bytes(len(data)) if damage == "replaced" else data)
    with pytest.raises(FileError, match=r"train/data-00001\.arrow.*restore it from a copy"):
        load_tokens(tmp_path, word_tokenizer()).train.rows_in_contexts()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "zip", "does not describe packed tokens"),
        ("version", 9, "is version 9, this library reads 1"),
        ("text", {"n_documents": "all"}, "is damaged"),
        ("train", {"shards": [{"file": "../x.arrow", "n_contexts": 1, "n_bytes": 1, "crc32": 0}]}, "is no shard"),
        ("plan", None, "is damaged"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, key, value, message):
    written(tmp_path)
    manifest = tmp_path / "monosema.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), key: value}))
    with pytest.raises(FileError, match=message):
        load_tokens(tmp_path, word_tokenizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["train"]["shards"][0].update(n_contexts=360_000_000),
            r"data-00000\.arrow.*360,000,000 contexts of 8",
        ),
        (
            lambda m: m["train"]["shards"][0].update(n_contexts=2**62),
            r"data-00000\.arrow.*do not fit into its [\d,]+ bytes",
        ),
        (lambda m: m["plan"].update(context_size=2**20), r"data-00000\.arrow.*contexts of 1,048,576 tokens do not fit"),
        (lambda m: m["train"]["shards"].append(m["train"]["shards"][0]), r"monosema\.json.*one shard twice"),
        (
            lambda m: m.update(
                plan={**m["plan"], "context_size": 2**61},
                train={**m["train"], "shards": []},
                heldout={**m["heldout"], "shards": []},
            ),
            r"monosema\.json.*context_size must be 1 to 2,147,483,647",
        ),
    ],
)
def test_numbers_that_the_files_cannot_hold_are_refused_before_memory_is_taken(tmp_path, monkeypatch, change, message):
    written(tmp_path)
    manifest = tmp_path / "monosema.json"
    values = json.loads(manifest.read_text())
    change(values)
    manifest.write_text(json.dumps(values))
    for name in ("arange", "empty", "zeros"):
        monkeypatch.setattr(np, name, None)
    with pytest.raises(FileError, match=message):
        load_tokens(tmp_path, word_tokenizer())


def other_vocabulary():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["w27"])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        (other_vocabulary(), {}, r"made with the tokenizer .* \(31 tokens\), the model's .* \(32 tokens"),
        (None, {"context_size": 9}, "context_size is 8 there, not 9"),
        (None, {"heldout_fraction": 0.3}, "heldout_fraction is 0.2 there, not 0.3"),
        (None, {"max_documents": 3}, "max_documents was decided when it was written, not 3"),
        (None, {"split": "train"}, "split was decided when it was written"),
        (None, {"packing": Packing(mode="windows")}, "leave packing out"),
        (None, {"attend_across_documents": False}, "write them with attend_across_documents=False"),
        (None, {"in_memory": False}, "memory-mapped; leave out in_memory"),
    ],
)
def test_what_the_folder_does_not_hold_is_refused(tmp_path, tokenizer, options, message):
    written(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_tokens(tmp_path, tokenizer, **options)
    assert load_tokens(tmp_path, None, SIZE, heldout_fraction=0.2).train.special_token_ids == {0, 1, 2}
    assert load_tokens(tmp_path, None, exclude_special_tokens=[5]).train.special_token_ids == {5}


def test_what_cannot_be_written_names_the_fix(tmp_path, monkeypatch):
    written(tmp_path / "t")
    with pytest.raises(ConfigError, match=r"other options \(context_size: 8 -> 9; shard_contexts: 31 -> 27\)"):
        pretokenize(TEXTS, word_tokenizer(), 9, tmp_path / "t", heldout_fraction=0.2, shard_bytes=1000, progress=False)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: 31 -> 32"):
        written(tmp_path / "t", tokenizer=other_vocabulary())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and holds no packed tokens"):
        written(tmp_path / "mine")
    rows = datasets.Dataset.from_list([{"input_ids": [0, 4, 5, 6]}])
    with pytest.raises(ConfigError, match="is tokenised already"):
        written(tmp_path / "rows", rows)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        pretokenize(TEXTS, None, SIZE, tmp_path / "none")
    with pytest.raises(DataError, match="the text is empty"):
        written(tmp_path / "empty", [" ", "\n"])
    with pytest.raises(DataError, match="fills no context of 8 tokens"):
        written(tmp_path / "short", ["w1 w2"], heldout_fraction=0.0)
    with write._locked(tmp_path / "taken"), pytest.raises(FileError, match="another process is writing"):
        written(tmp_path / "taken")
    monkeypatch.setattr(writer, "free_disk", lambda path: 1000)
    with pytest.raises(FileError, match=r"takes 1,\d+ bytes, .* has 1,000 free; free some"):
        written(tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.arrow"))


@pytest.mark.parametrize("options", [{}, {"packing": Packing(mode="windows")}, {"attend_across_documents": False}])
def test_a_dictionary_is_the_same_to_the_bit_and_can_be_rebuilt(tmp_path, model, monkeypatch, options):
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(TEXTS))
    folder = tmp_path / "tokens"
    pretokenize(text, model.tokenizer, SIZE, folder, heldout_fraction=0.2, progress=False, **options)
    weights, fingerprints, reports = [], [], []
    for source in (text, folder):
        tokens = load_tokens(source, model.tokenizer, SIZE, heldout_fraction=0.2, **options)
        stream = ActivationStream(model, tokens, SITES[0], batch_size=32, seed=1)
        coder = ms.SAE(stream.d_in, 24, activation=ms.TopK(k=3))
        ms.train(coder, stream, ms.TrainingConfig(tokens=640), evaluation=False, progress=False)
        weights.append(coder.W_dec.detach())
        reports.append(ms.evaluate(coder, model, tokens, n_tokens=200, progress=False))
        fingerprints.append(coder.metadata["tokens"]["fingerprint"])
    assert torch.equal(*weights)
    assert reports[0] == reports[1]
    assert fingerprints[0] == fingerprints[1]
    assert coder.metadata["tokens"]["pretokenized"]["source"] == str(text)
    monkeypatch.setattr(tokenise, "encode", None)
    again = ActivationStream.from_coder(coder, model=model)
    assert again.split.fingerprint == fingerprints[0]
    assert isinstance(again.split.contexts, StoredContexts)


def test_a_folder_of_an_older_version_keeps_its_sides_and_is_not_gone_on_with(tmp_path, monkeypatch):
    def without_rule(folder: Path) -> None:
        manifest = json.loads((folder / "monosema.json").read_text())
        assert manifest.pop("heldout_rule")["below"] > 0
        (folder / "monosema.json").write_text(json.dumps(manifest))

    made = written(tmp_path / "whole")
    without_rule(tmp_path / "whole")
    again = written(tmp_path / "whole")
    assert (again.train.fingerprint, again.heldout.fingerprint) == (made.train.fingerprint, made.heldout.fingerprint)
    assert "heldout_rule" not in again.record
    with monkeypatch.context() as patch:
        killed_at(patch, writer, "write_shard", 3)
        with pytest.raises(Killed):
            written(tmp_path / "cut")
    without_rule(tmp_path / "cut")
    before = content(tmp_path / "cut")
    with pytest.raises(ConfigError, match="begun by an older version, which held out other documents"):
        written(tmp_path / "cut")
    assert content(tmp_path / "cut") == before
