"""Text that is read as a run needs it: every document once, the held-out ones apart, from any place on."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from data_tiny import BOS, SITES, word_tokenizer, words

import monosema as ms
from monosema.core.errors import ConfigError, DataError
from monosema.core.seeds import random_stream
from monosema.data import ActivationStream, document_reader, heldout, load_tokens, pretokenize, reading
from monosema.data.config import Mixture, TextSource
from monosema.data.file_formats import named_by_text
from monosema.data.stdlib import is_heldout_name

SIZE = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_reader, "BLOCK_DOCUMENTS", 6)
    monkeypatch.setattr(heldout, "WINDOW_DOCUMENTS", 10)


def texts(n: int, first: int = 0) -> list[str]:
    """Documents that fill a context each: four tokens behind BOS, which tell the document's number."""
    return [words(4 + (i // 27) % 27, 4 + i % 27, 10, 11) for i in range(first, first + n)]


def as_needed(source, **options) -> ms.Tokens:
    return load_tokens(source, word_tokenizer(), SIZE, in_memory=False, **options)


def all_contexts(tokens: ms.Tokens, seed: int = 0, epoch: int = 0, place=None) -> list[tuple[int, ...]]:
    blocks = tokens.train.read(seed, epoch, place)
    return [tuple(row) for block in blocks for row in block.contexts.ids.tolist()]


def expected(documents: list[str], heldout: bool = False, fraction: float = 0.25) -> list[tuple[int, ...]]:
    tokenizer = word_tokenizer()
    side = [each for each in documents if is_heldout_name(named_by_text(each).name, fraction) == heldout]
    return [(BOS, *tokenizer(each, add_special_tokens=False)["input_ids"]) for each in side]


def test_both_sides_are_those_of_the_text_in_memory():
    documents = texts(50)
    tokens = as_needed(documents, heldout_fraction=0.25)
    whole = load_tokens(documents, word_tokenizer(), SIZE, heldout_fraction=0.25)
    assert all_contexts(tokens) == expected(documents) == [tuple(row) for row in whole.train.contexts.tolist()]
    assert torch.equal(tokens.heldout.contexts, whole.heldout.contexts)
    assert tokens.record["in_memory"] is False
    assert tokens.train.rule.special_token_ids == whole.train.special_token_ids
    assert tokens.train.rows_per_context == SIZE - 1
    assert "streamed" in repr(tokens)


def test_the_heldout_side_is_gathered_from_the_beginning(monkeypatch):
    monkeypatch.setattr(reading, "HELDOUT_TOKENS", 12)
    documents = texts(100)
    tokens = as_needed(documents, heldout_fraction=0.25)
    n_read = tokens.record["n_documents_read_for_heldout"]
    assert n_read < 40
    found = [tuple(row) for row in tokens.heldout.contexts.tolist()]
    assert found == expected(documents[:n_read], heldout=True)
    assert len(found) >= 3
    assert all_contexts(tokens) == expected(documents), "held-out documents are left out to the end"
    assert as_needed(documents, heldout_fraction=0.0).heldout.n_contexts == 0


@pytest.mark.parametrize("max_documents", [None, 20])
def test_it_goes_on_from_any_place(max_documents):
    documents = texts(50)
    tokens = as_needed(documents, heldout_fraction=0.25, max_documents=max_documents)
    blocks = list(tokens.train.read(0, 0, None))
    assert len(blocks) == (9 if max_documents is None else 4)
    for done, block in enumerate(blocks, start=1):
        rest = all_contexts(tokens, place=json.loads(json.dumps(block.place)))
        assert rest == [tuple(row) for later in blocks[done:] for row in later.contexts.ids.tolist()]
    assert all_contexts(tokens) == expected(documents[:max_documents])


def streamed_dataset(n: int, n_shards: int) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"text": texts(n), "other": list(range(n))}).to_iterable_dataset(n_shards)


def test_a_streamed_dataset_takes_its_shards_in_an_order_of_the_seed_and_keeps_its_own_place():
    tokens = as_needed(streamed_dataset(60, 6), heldout_fraction=0.25)
    first, again, other, later = (all_contexts(tokens, *key) for key in ((1, 0), (1, 0), (2, 0), (1, 1)))
    assert first == again
    assert sorted(first) == sorted(other) == sorted(later) == sorted(expected(texts(60)))
    assert first != other
    assert first != later
    blocks = list(tokens.train.read(1, 0, None))
    for done, block in enumerate(blocks, start=1):
        rest = all_contexts(tokens, 1, 0, json.loads(json.dumps(block.place)))
        assert rest == [tuple(row) for later in blocks[done:] for row in later.contexts.ids.tolist()]


def test_parts_of_a_mixture_keep_their_shares():
    parts = {
        "a": TextSource(source=texts(200), weight=3.0),
        "b": TextSource(source=texts(200, first=300), weight=1.0),
    }
    tokens = as_needed(Mixture(parts=parts), heldout_fraction=0.0)
    found = all_contexts(tokens)
    in_a = set(expected(texts(200), fraction=0.0))
    n_a = sum(each in in_a for each in found)
    assert n_a == 200, "the mixture ends with the first part that is dry"
    assert abs((len(found) - n_a) - 200 / 3) <= 6, "to within a block"
    blocks = list(tokens.train.read(0, 0, None))
    place = json.loads(json.dumps(blocks[7].place))
    assert all_contexts(tokens, place=place) == found[8 * 6 :]
    on = as_needed(Mixture(parts=parts, when_dry="go_on"), heldout_fraction=0.0)
    assert sorted(all_contexts(on)) == sorted(expected(texts(200) + texts(200, 300), fraction=0.0))


def test_what_can_be_read_once_only_is_refused_and_a_function_is_not():
    with pytest.raises(DataError, match="give a function"):
        as_needed(iter(texts(50)))
    tokens = as_needed(lambda: iter(texts(50)), heldout_fraction=0.25)
    assert all_contexts(tokens) == all_contexts(tokens) == expected(texts(50))


def test_what_contradicts_it_is_refused():
    with pytest.raises(ConfigError, match="n_processes"):
        as_needed(texts(50), n_processes=2)
    with pytest.raises(DataError, match="no context of 5 tokens"):
        as_needed(["w1", "w2"], heldout_fraction=0.0)
    rows = datasets.Dataset.from_dict({"input_ids": [[0, 4, 5, 6, 7]] * 9})
    with pytest.raises(ConfigError, match="in_memory"):
        as_needed(rows)


@pytest.mark.parametrize("shuffle_documents", [None, 2])
def test_a_run_on_it_resumes_to_the_bit(model, tmp_path, shuffle_documents):
    dataset = streamed_dataset(400, 4)

    def run(out, **options):
        tokens = as_needed(dataset, heldout_fraction=0.1, shuffle_documents=shuffle_documents)
        stream = ActivationStream(model, tokens, SITES[0], 32, chunk_contexts=10, seed=2)
        config = ms.TrainingConfig(tokens=32 * 24, lr=0.01, checkpoint_every=5, log_every=1)
        coder = ms.SAE(stream.d_in, 24, activation=ms.TopK(k=4), seed=0)
        return ms.train(coder, stream, config, out=out, evaluation=False, progress=False, **options)

    def stop(trainer):
        if trainer.step_number == 13:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", on_step=stop)
    resumed = run(tmp_path / "cut")
    assert resumed.resumed_from == 10
    for name, value in whole.coder.state_dict().items():
        assert torch.equal(resumed.coder.state_dict()[name], value), name


def in_shuffled_order(documents: list[str], seed: int, size: int) -> list[str]:
    """What ``shuffle_documents`` comes to: each group of ``size`` permuted by a random stream of its number."""
    found = []
    for number, start in enumerate(range(0, len(documents), size)):
        group = documents[start : start + size]
        order = torch.randperm(len(group), generator=random_stream(seed, "documents", number))
        found += [group[place] for place in order.tolist()]
    return found


@pytest.fixture
def groups_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_reader, "SHUFFLED_DOCUMENTS", 16)


@pytest.mark.usefixtures("groups_of_16")
@pytest.mark.parametrize("max_documents", [None, 41])
def test_shuffled_documents_are_the_same_in_memory_as_needed_and_on_disk(tmp_path, max_documents):
    documents = texts(50)
    options = {"heldout_fraction": 0.25, "shuffle_documents": 3, "max_documents": max_documents}
    ordered = in_shuffled_order(documents[:max_documents], 3, 16)
    whole = load_tokens(documents, word_tokenizer(), SIZE, **options)
    tokens = as_needed(documents, **options)
    packed = pretokenize(documents, word_tokenizer(), SIZE, tmp_path / "packed", progress=False, **options)
    assert ordered != documents[:max_documents]
    assert sorted(ordered) == sorted(documents[:max_documents])
    assert [tuple(row) for row in whole.train.contexts.tolist()] == expected(ordered)
    assert [tuple(row) for row in whole.heldout.contexts.tolist()] == expected(ordered, heldout=True)
    assert all_contexts(tokens) == expected(ordered)
    assert torch.equal(tokens.heldout.contexts, whole.heldout.contexts)
    assert torch.equal(packed.train.contexts[:], whole.train.contexts)
    assert torch.equal(packed.heldout.contexts[:], whole.heldout.contexts)
    assert packed.record["pretokenized"]["shuffle_documents"] == whole.record["shuffle_documents"] == 3
    other = load_tokens(documents, word_tokenizer(), SIZE, **{**options, "shuffle_documents": 4})
    assert other.train.fingerprint != whole.train.fingerprint
    assert "shuffle_documents" not in load_tokens(documents, word_tokenizer(), SIZE).record


@pytest.mark.usefixtures("groups_of_16")
@pytest.mark.parametrize("n_shards", [0, 1, 3])
@pytest.mark.parametrize("max_documents", [None, 37])
def test_shuffled_documents_go_on_from_any_place(n_shards, max_documents):
    source = texts(50) if n_shards == 0 else streamed_dataset(50, n_shards)
    tokens = as_needed(source, heldout_fraction=0.25, max_documents=max_documents, shuffle_documents=0)
    blocks = list(tokens.train.read(1, 0, None))
    found = [tuple(row) for block in blocks for row in block.contexts.ids.tolist()]
    if n_shards < 2:
        assert found == expected(in_shuffled_order(texts(50)[:max_documents], 0, 16))
    elif max_documents is None:
        assert sorted(found) == sorted(expected(texts(50)))
        assert found != all_contexts(as_needed(source, heldout_fraction=0.25), 1)
    for done, block in enumerate(blocks, start=1):
        rest = all_contexts(tokens, 1, 0, json.loads(json.dumps(block.place)))
        assert rest == [tuple(row) for later in blocks[done:] for row in later.contexts.ids.tolist()]


@pytest.mark.usefixtures("groups_of_16")
def test_each_part_of_a_mixture_is_shuffled_by_itself():
    parts = {"a": TextSource(source=texts(40)), "b": TextSource(source=texts(40, first=300))}
    tokens = load_tokens(Mixture(parts=parts), word_tokenizer(), SIZE, heldout_fraction=0.0, shuffle_documents=5)
    ordered = [in_shuffled_order(texts(40, first=first), 5, 16) for first in (0, 300)]
    alternating = [each for pair in zip(*ordered, strict=True) for each in pair]
    assert [tuple(row) for row in tokens.train.contexts.tolist()] == expected(alternating, fraction=0.0)


def test_what_cannot_be_shuffled_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="shuffle_documents is the seed of the order, got True"):
        as_needed(texts(50), shuffle_documents=True)
    rows = datasets.Dataset.from_dict({"input_ids": [[0, 4, 5, 6, 7]] * 9})
    with pytest.raises(ConfigError, match="shuffle_documents: pretokenised rows are taken as they are"):
        load_tokens(rows, word_tokenizer(), shuffle_documents=1)
    packed = {"tokenizer": word_tokenizer(), "context_size": SIZE, "out": tmp_path / "packed", "progress": False}
    pretokenize(texts(50), **packed)
    with pytest.raises(ConfigError, match="shuffle_documents was decided when it was written, not 1"):
        load_tokens(tmp_path / "packed", word_tokenizer(), shuffle_documents=1)
    with pytest.raises(ConfigError, match=r"text\.shuffle_documents: None -> 1"):
        pretokenize(texts(50), **packed, shuffle_documents=1)


@pytest.mark.parametrize("n_shards", [1, 2])
def test_an_epoch_after_a_resumed_one_begins_at_the_start(n_shards):
    tokens = as_needed(streamed_dataset(50, n_shards), heldout_fraction=0.25)
    blocks = list(tokens.train.read(1, 0, None))
    assert len(all_contexts(tokens, 1, 0, json.loads(json.dumps(blocks[3].place)))) < len(expected(texts(50)))
    assert sorted(all_contexts(tokens, 1, 1)) == sorted(expected(texts(50)))
