"""Mixtures: shares by tokens at every point, what happens at the end of a part, and what is recorded."""

from __future__ import annotations

import numpy as np
import pytest
from data_tiny import word_tokenizer, words
from hypothesis import given, settings
from hypothesis import strategies as st

from monosema.core.errors import ConfigError, DataError
from monosema.data import heldout
from monosema.data.config import Mixture, TextSource, load_tokens
from monosema.data.documents import TextFingerprint
from monosema.data.file_formats import Document, named_by_text
from monosema.data.mixture import mix
from monosema.data.tokenise import TokenisedDocument


def documents(lengths):
    return iter([TokenisedDocument(Document(str(i), ""), np.zeros(n, np.int32)) for i, n in enumerate(lengths)])


def mixed_names(lengths, weights, when_dry="stop"):
    return [each.part for each in mix({k: documents(v) for k, v in lengths.items()}, weights, when_dry)]


def test_the_order_by_hand():
    # a/2 and b/1 after each document: 0 0 | 2 0 | 2 4 | 4 4 | 5 4 | 5 5
    lengths = {"a": [4, 4, 2], "b": [4, 1]}
    assert mixed_names(lengths, {"a": 2, "b": 1}) == ["a", "b", "a", "a", "b"]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 50), min_size=8, max_size=8), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_shares_hold_to_within_a_document_at_every_point(lengths, weights):
    share = {str(i): weight for i, weight in enumerate(weights[: len(lengths)])}
    used = dict.fromkeys(share, 0)
    a_document = max(map(max, lengths)) / min(share.values())
    for each in mix({str(i): documents(row) for i, row in enumerate(lengths)}, share):
        used[each.part] += len(each.tokenised.tokens)
        levels = [used[name] / share[name] for name in share]
        assert max(levels) - min(levels) <= a_document + 1e-9


def test_a_part_that_runs_dry_ends_the_mixture_or_leaves_it_to_the_others():
    lengths = {"a": [2], "b": [2, 2, 2]}
    assert mixed_names(lengths, {"a": 1, "b": 1}) == ["a", "b"]
    assert mixed_names(lengths, {"a": 1, "b": 1}, "go_on") == ["a", "b", "b", "b"]


def test_a_mixture_is_loaded_recorded_and_counted(tmp_path):
    (tmp_path / "code.jsonl").write_text("".join(f'{{"body": "{words(4, 5, 6, 7 + i)}"}}\n' for i in range(9)))
    prose = [words(10 + i, 11, 12, 13) for i in range(9)]
    mixture = Mixture(
        parts={
            "code": TextSource(source=tmp_path / "code.jsonl", weight=2, column="body", max_documents=6),
            "prose": TextSource(source=prose),
        },
    )
    tokens = load_tokens(mixture, word_tokenizer(), 5, heldout_fraction=0.0)
    assert [row[1] for row in tokens.train.contexts.tolist()] == [4, 10, 4, 4, 11, 4, 4, 12, 4]
    assert tokens.record["mixture"] == {
        "code": {"source": str(tmp_path / "code.jsonl"), "column": "body", "max_documents": 6, "weight": 2},
        "prose": {"source": "text in memory", "weight": 1.0},
    }
    assert tokens.record["source"] == "mixture"
    assert tokens.record["parts"] == {
        "code": {"n_documents": 6, "n_tokens": 24},
        "prose": {"n_documents": 3, "n_tokens": 12},
    }
    expected = TextFingerprint()
    for part, i in [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3), (0, 4), (1, 2), (0, 5)]:
        expected.add(named_by_text(prose[i] if part else words(4, 5, 6, 7 + i)))
    assert tokens.record["text_sha256"] == expected.hexdigest(), "only what was used is counted"


def test_what_is_held_out_of_a_long_part_is_what_is_held_out_of_it_alone(monkeypatch):
    monkeypatch.setattr(heldout, "WINDOW_DOCUMENTS", 20)
    texts = {name: [words(4 + i % 20, 5 + k, 6 + i // 20) for i in range(80)] for k, name in enumerate("ab")}
    parts = {name: TextSource(source=rows) for name, rows in texts.items()}
    both = load_tokens(Mixture(parts=parts, when_dry="go_on"), word_tokenizer(), 4, heldout_fraction=0.3)
    alone = [load_tokens(rows, word_tokenizer(), 4, heldout_fraction=0.3) for rows in texts.values()]
    assert both.record["n_heldout_documents"] == sum(each.record["n_heldout_documents"] for each in alone) > 0
    rows = {tuple(row) for each in alone for row in each.heldout.contexts.tolist()}
    assert {tuple(row) for row in both.heldout.contexts.tolist()} == rows


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mixture(parts={}), ConfigError, "at least one part"),
        (
            lambda: Mixture(parts={"a": TextSource(source="x"), "b": "stdlib"}),
            ConfigError,
            "part 'b' of a mixture must be a TextSource, got a str",
        ),
        (lambda: TextSource(source="a", weight=0), ConfigError, "weight must be positive, got 0"),
        (lambda: TextSource(source="a", weight=float("nan")), ConfigError, "must be positive, got nan"),
        (lambda: TextSource(source="a", max_documents=0), ConfigError, "max_documents must be at least 1"),
        (lambda: load_tokens("a", None, data_files={"train": "x"}), ConfigError, "data_files must be a name or a list"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_options_of_the_parts_are_not_given_beside_them():
    mixture = Mixture(parts={"a": TextSource(source=["w1"])})
    with pytest.raises(ConfigError, match="a mixture's parts have their own column, split; set them in TextSource"):
        load_tokens(mixture, word_tokenizer(), 4, column="x", split="train")


def test_parts_that_are_tokenised_already_are_refused():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"input_ids": [1, 2]}])
    with pytest.raises(DataError, match="part 'ids' is tokenised already"):
        load_tokens(Mixture(parts={"ids": TextSource(source=rows)}), word_tokenizer(), 4)
