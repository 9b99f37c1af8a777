"""Modes of packing, padding, position slices and cut attention, from text to rows."""

from __future__ import annotations

import json
from itertools import pairwise

import datasets
import pytest
import torch
from data_tiny import BOS, SITES, hooked_rows, random_split, tiny_llama, word_tokenizer, words
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

import monosema as ms
from monosema.core.config import from_plain, to_plain
from monosema.core.errors import ConfigError, DataError, ShapeError, UserError
from monosema.data import ActivationCache, ActivationStream, Packing, Positions, TokenSplit, load_tokens, write_cache
from monosema.data.cache.folders import open_folder
from monosema.data.cache.shards import read_shard
from monosema.data.rebuild import recorded_options, tokens_again
from monosema.models import LanguageModel

EOS, PAD = 1, 2
SITE = SITES[0]
TEXTS = [words(*range(4, 4 + n)) for n in (3, 9, 1, 5, 7, 2, 12, 4, 6, 8)]
WINDOWS = Packing(mode="windows")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64: rows that go through it in batches of another shape differ far less than 1e-5.

    Two orders of a float64 sum of n ≤ 24 products differ by 2 · n · 2^-53 · Σ|a·b|, below 1e-12 here. The norms are in
    float32 whatever the model, and round by 2^-24 of values below 16.
    """
    return tiny_llama(torch.float64)


def load(texts, size=6, tokenizer=None, **options) -> ms.Tokens:
    return load_tokens(texts, tokenizer or word_tokenizer(), size, heldout_fraction=0.0, **options)


def stream_rows(model, tokens, **options) -> Tensor:
    """All rows, sorted so that they can be compared."""
    stream = ActivationStream(model, tokens, SITE, batch_size=1, chunk_contexts=3, model_batch_size=2, **options)
    rows = torch.cat(list(stream))
    assert len(rows) == stream.n_rows
    return rows[rows[:, 0].argsort()]


def rows_of_each_alone(model, contexts: list[list[int]], special=(BOS, EOS, PAD)) -> Tensor:
    """The same of unpadded token lists, each in a forward pass of its own, by the model's own call."""
    rows = []
    for context in contexts:
        ids = torch.tensor([context])
        values = model.capture(ids, [SITE])[SITE][0]
        rows.append(values[[token not in special for token in context]])
    joined = torch.cat(rows)
    return joined[joined[:, 0].argsort()]


def test_windows_know_their_padding_even_where_it_is_the_tokenizers_eos():
    tokenizer = word_tokenizer(bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # no padding token
    split = load([words(5, 6, 7, 8), words(9)], 4, tokenizer, packing=WINDOWS, exclude_special_tokens=False).train
    assert split.contexts.tolist() == [[BOS, 5, 6, 7], [BOS, 8, EOS, EOS], [BOS, 9, EOS, EOS]]
    assert split.row_mask().tolist() == [[True] * 4, [True, True, False, False], [True, True, False, False]]
    assert split.n_tokens == 8
    assert split.row_mask(torch.tensor([2, 0])).sum(1).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("sae_lens", [[BOS, 5, 6, 7], [BOS, 8, BOS, 9]]),
        ("transcoder_circuits", [[BOS, 5, 6, 7], [BOS, 8, BOS, 9]]),
        ("e2e", [[5, 6, 7, 8], [9, PAD, PAD, PAD]]),
        ("dictionary_learning", [[5, 6, 7, 8], [9, PAD, PAD, PAD]]),  # this tokenizer puts nothing by itself
    ],
)
def test_presets_by_hand(preset, expected):
    split = load([words(5, 6, 7, 8), words(9)], 4, packing=Packing(preset=preset)).train
    assert split.contexts.tolist() == expected
    assert (split.documents is None) == (PAD not in expected[-1])


def test_own_marks_are_those_the_tokenizer_puts():
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    split = load([words(5, 6, 7, 8), words(9)], 4, tokenizer, packing=Packing(preset="dictionary_learning")).train
    assert split.contexts.tolist() == [[BOS, 5, 6, EOS], [BOS, 9, EOS, PAD]]


def test_marks_by_name_and_id():
    texts = [words(5, 6), words(7, 8)]
    given = Packing(begin_context="none", separator="eos", begin_document=9)
    split = load(texts, 7, packing=given)
    assert split.train.contexts.tolist() == [[9, 5, 6, EOS, 9, 7, 8]]
    record = split.record
    assert (record["begin_context"], record["begin_document"], record["separator"]) == (None, 9, EOS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": "bos", "mode": "windows"}, "leave it out"),
        ({"preset": "e2e", "separator": 3}, "leave it out"),
        ({"separator": "own"}, "nothing between documents"),
        ({"document_tokens": 0}, "at least 1"),
    ],
)
def test_packings_that_contradict_themselves_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Packing(**options)


def test_options_that_do_not_fit_the_tokenizer_or_the_data_are_refused():
    with pytest.raises(ConfigError, match=r"begin_context='cls': the tokenizer has no such token"):
        load(TEXTS, packing=Packing(begin_context="cls"))
    rows = datasets.Dataset.from_list([{"input_ids": [4, 5, 6]}])
    with pytest.raises(ConfigError, match="packing is for text"):
        load(rows, None, packing=WINDOWS)
    with pytest.raises(ConfigError, match=r"6:None:None choose none of the 6"):
        load(TEXTS, positions=Positions(start=6))
    with pytest.raises(ConfigError, match="step must be at least 1"):
        Positions(step=0)
    with pytest.raises(ShapeError, match="documents must have the shape"):
        TokenSplit(torch.zeros(2, 3, dtype=torch.int32), frozenset(), "train", documents=torch.zeros(2, 2))


@pytest.mark.parametrize("mode", ["windows", "truncate"])
def test_rows_of_padded_contexts_equal_those_of_the_documents_alone(model, mode):
    tokens = load(TEXTS, packing=Packing(mode=mode))
    contexts = []
    for n in (3, 9, 1, 5, 7, 2, 12, 4, 6, 8):
        document = list(range(4, 4 + n))
        parts = [[BOS, *document[start : start + 5]] for start in range(0, n, 5)]
        contexts += parts if mode == "windows" else parts[:1]
    torch.testing.assert_close(stream_rows(model, tokens), rows_of_each_alone(model, contexts), rtol=0, atol=1e-5)


def test_an_encoders_padding_is_masked_for_its_attention():
    config = BertConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ms.load_model(BertForMaskedLM(config))
    tokenizer = word_tokenizer(cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>")
    tokens = load(TEXTS, 6, tokenizer, packing=WINDOWS)
    contexts = [
        [BOS, *range(4 + start, 4 + min(start + 4, n)), EOS]
        for n in (3, 9, 1, 5, 7, 2, 12, 4, 6, 8)
        for start in range(0, n, 4)
    ]
    torch.testing.assert_close(stream_rows(encoder, tokens), rows_of_each_alone(encoder, contexts), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="it is an encoder"):
        stream_rows(encoder, load(TEXTS, 6, tokenizer, attend_across_documents=False))


@pytest.mark.parametrize("prefetch", [False, True])
def test_cut_attention_gives_each_document_what_it_gets_alone(model, prefetch):
    tokens = load(TEXTS, 8, attend_across_documents=False)
    split = tokens.train
    assert split.documents is not None
    contexts = []
    for row in split.contexts.tolist():  # every document begins with BOS
        starts = [at for at, token in enumerate(row) if token == BOS] + [len(row)]
        contexts += [row[a:b] for a, b in pairwise(starts)]
    assert len(contexts) > split.n_contexts + 3
    alone = rows_of_each_alone(model, contexts)
    torch.testing.assert_close(stream_rows(model, tokens, prefetch=prefetch), alone, rtol=0, atol=1e-5)
    plain = load(TEXTS, 8)
    assert plain.train.documents is None
    assert torch.equal(plain.train.contexts, split.contexts)
    assert plain.train.fingerprint != split.fingerprint
    assert float((stream_rows(model, plain) - alone).abs().max()) > 1e-2


def test_position_slices_choose_rows_in_the_stream_and_the_cache(model, tmp_path):
    split = random_split()
    sliced = TokenSplit(split.contexts, split.special_token_ids, "train", positions=Positions(start=1, stop=-1, step=3))
    assert sliced.fingerprint == split.fingerprint
    assert not sliced.row_mask()[:, [0, 2, 3, 5, 6, 7]].any()
    chosen = hooked_rows(model, split.contexts)[SITE][:, [1, 4]][split.contexts[:, [1, 4]] != BOS]
    chosen = chosen[chosen[:, 0].argsort()]
    torch.testing.assert_close(stream_rows(model, sliced), chosen)
    stream = ActivationStream(model, sliced, SITE, batch_size=4, chunk_contexts=5)
    write_cache(stream, tmp_path / "c", dtype="float32")
    cache = ActivationCache(tmp_path / "c", 4)
    shards = [read_shard(open_folder(cache.folder), cache.manifest.plan.shards, each) for each in cache.manifest.shards]
    rows = torch.cat([shard.rows for shard in shards])
    torch.testing.assert_close(rows[rows[:, 0].argsort()], chosen.float())
    assert set(torch.cat([shard.positions for shard in shards]).tolist()) == {1, 4}


def test_another_slice_is_another_stream(model):
    split = random_split()
    state = ActivationStream(model, split, SITE, batch_size=4).state_dict()
    sliced = TokenSplit(split.contexts, split.special_token_ids, "train", positions=Positions(start=1))
    with pytest.raises(DataError, match="positions"):
        ActivationStream(model, sliced, SITE, batch_size=4).load_state_dict(state)


@pytest.mark.parametrize("options", [{"packing": WINDOWS}, {"attend_across_documents": False}])
def test_a_stream_of_documents_resumes_bit_for_bit(model, options):
    tokens = load(TEXTS * 3, 8, **options)

    def make():
        return ActivationStream(model, tokens, SITE, batch_size=4, chunk_contexts=4, model_batch_size=3, seed=1)

    whole = list(make())
    for n_before in (1, 5, 9):
        first, second = make(), make()
        for _ in range(n_before):
            next(first)
        second.load_state_dict(first.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(whole[n_before:], second, strict=True))
    damaged = first.state_dict()
    damaged["chunk_ids"] = damaged["chunk_ids"] + 1
    with pytest.raises(DataError, match="state is damaged"):
        make().load_state_dict(damaged)


def test_tokens_that_the_model_does_not_have_are_refused_at_once(model):
    split = TokenSplit(torch.full((9, 4), 31, dtype=torch.int32), frozenset(), "train")
    with pytest.raises(DataError, match=r"holds token id 31, those of .* are 0 to 30"):
        ActivationStream(model, split, SITE, batch_size=4)


def test_everything_is_recorded_and_found_again(tmp_path, model):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    options = {
        "packing": Packing(preset="e2e", begin_document="bos"),
        "positions": Positions(start=1, step=2),
        "attend_across_documents": False,
    }
    tokens = load(path, **options)
    stream = ActivationStream(model, tokens, SITE, batch_size=4)
    metadata = json.loads(json.dumps(stream.record()))
    recorded = recorded_options(metadata)["tokens"]
    assert recorded["positions"] == {"start": 1, "stop": None, "step": 2}
    assert from_plain(Packing, recorded["packing"]) == options["packing"].resolved()
    again = tokens_again(recorded, model)
    assert again.train.fingerprint == tokens.train.fingerprint
    assert again.train.positions == tokens.train.positions
    assert to_plain(again.record) == to_plain(tokens.record)


def saved_rows(folder, rows, **metadata):
    datasets.Dataset.from_list([{"input_ids": row} for row in rows]).save_to_disk(str(folder))
    if metadata:
        (folder / "sae_lens.json").write_text(json.dumps(metadata))
    return folder


def test_pretokenised_rows_are_held_against_the_tokenizer(tmp_path, caplog):
    rows = [[BOS, 5, 6, 7], [BOS, 8, EOS, 9]]
    marks = {"begin_batch_token": "bos", "begin_sequence_token": None, "sequence_separator_token": "eos"}
    folder = saved_rows(tmp_path / "a", rows, tokenizer_name="gpt2", context_size=4, **marks)
    tokenizer = word_tokenizer()
    tokenizer.name_or_path = "somebody/another"
    with caplog.at_level("WARNING"):
        tokens = load(folder, None, tokenizer)
    assert "with the tokenizer 'gpt2', the model's is 'somebody/another'" in caplog.text
    assert tokens.record["begin_context"] == BOS
    assert tokens.record["separator"] == EOS
    cut = load(folder, None, tokenizer, attend_across_documents=False).train
    assert cut.documents is not None
    assert cut.documents.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    with pytest.raises(DataError, match="speaks of rows of 5 tokens, the dataset has rows of 4"):
        load(saved_rows(tmp_path / "b", rows, context_size=5), None)
    with pytest.raises(
        DataError, match="every row begins with 'eos', which is 1 for this tokenizer, but one begins with 0"
    ):
        load(saved_rows(tmp_path / "c", rows, begin_batch_token="eos"), None)
    with pytest.raises(DataError, match="hold token id 31, the tokenizer's are 0 to 30"):
        load(saved_rows(tmp_path / "d", [[BOS, 31]]), None)
    with pytest.raises(ConfigError, match="where documents begin"):
        load_tokens(folder, None, heldout_fraction=0.0, attend_across_documents=False)


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch's compiler needs vectors, turned off here"
)
def test_compiled_blocks_take_the_mask_of_cut_attention():
    tokens = load(TEXTS, 8, attend_across_documents=False)
    model = tiny_llama()
    expected = stream_rows(model, tokens)
    torch.testing.assert_close(stream_rows(model, tokens, compile="default"), expected, rtol=0, atol=1e-5)
