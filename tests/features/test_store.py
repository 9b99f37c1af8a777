"""The store in Python: indexing, order, table, rendering, disk."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from page_source import embedded
from safetensors.torch import load_file, save_file

from monosema.core.errors import FileError, UserError
from monosema.features import Feature, FeatureStore


def test_indexing_and_iteration(known_store: FeatureStore):
    assert len(known_store) == 3
    assert [feature.index for feature in known_store] == [0, 1, 2]
    assert known_store.alive.tolist() == [0, 1, 2]
    feature = known_store[torch.tensor(1)]
    assert isinstance(feature, Feature)
    assert (feature.count, feature.n_tokens, feature.density) == (3, 14, 3 / 14)
    assert (feature.maximum, feature.mean) == (0.5, 0.5)
    dead = known_store[3]
    assert not dead.is_alive
    assert (dead.density, dead.maximum, dead.mean, dead.histogram.bin_width) == (0, 0, 0, 0)
    for latent in (4, -1):
        with pytest.raises(UserError, match="this store has latents 0 to 3"):
            known_store[latent]


def test_order_and_table(known_store: FeatureStore):
    assert known_store.order("density") == [0, 2, 1]
    assert known_store.order("maximum", descending=False) == [1, 2, 0]
    assert known_store.order("mean") == [2, 0, 1]
    assert known_store.order("clarity") == [1, 0, 2]
    assert known_store.order("index") == [2, 1, 0]
    rows = known_store.table()
    assert [row.index for row in rows] == [0, 1, 2]
    assert [row.index for row in known_store.table("density")] == [0, 2, 1]
    row = rows[0]
    assert (row.count, row.density, row.maximum, row.mean) == (9, 9 / 14, 4, pytest.approx(7 / 3))
    assert row.strongest_token == "⟨3⟩"
    assert len(row.top_logits) == 3
    for each, feature in zip(rows, known_store, strict=True):
        assert (each.count, each.maximum, each.mean) == (feature.count, feature.maximum, feature.mean)
        assert each.strongest_token in [span.text for span in feature.contexts[0].spans if span.value == each.maximum]


def test_spans_cover_the_context_and_carry_the_largest_value(hostile_store: FeatureStore):
    n_grouped = 0
    for feature in hostile_store:
        for context in feature.contexts:
            spans = context.spans
            assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
            assert spans[-1].stop == len(context.values)
            for span in spans:
                assert span.value == float(context.values[span.start : span.stop].max())
                n_grouped += span.stop - span.start > 1
            assert max(span.value for span in spans) == context.maximum
    assert n_grouped > 20  # the text is full of characters that several tokens share


def test_a_window_is_whole_spans_around_the_maximum(known_store: FeatureStore):
    context = known_store[0].contexts[0]
    assert [span.start for span in context.window(1, 1)] == [2, 3, 4]
    assert [span.start for span in context.window(0, 0)] == [3]
    assert len(context.window(99, 99)) == 6


def test_text_of_a_feature(known_store: FeatureStore):
    lines = str(known_store[0]).splitlines()
    assert lines[0] == "latent 0 of hook_embed (tiny-llama)"
    assert lines[1] == "  density 0.643 (9 of 14 tokens)   maximum 4.00   mean 2.33"
    assert lines[2] == "  activations    ▇▇ ▇ 5.00".replace("activations  ", "activations   0")
    assert lines[3].startswith("  top logits    ⟨")
    assert lines[5] == "      4.00  ⟨0⟩⟨1⟩«⟨2⟩»«⟨3⟩»⟨1⟩⟨0⟩"  # half of the context's maximum and more is marked
    assert repr(known_store[0]) == str(known_store[0])
    assert str(known_store[3]).splitlines()[1] == "  never fired on 14 tokens"
    assert repr(known_store) == "FeatureStore(3 of 4 latents of hook_embed (tiny-llama) fired on 14 tokens)"


def test_text_of_any_feature_is_one_line_a_context(hostile_store: FeatureStore):
    for feature in hostile_store:
        text = str(feature)
        assert len(text.splitlines()) == 5 + len(feature.contexts)
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_html_of_a_feature_is_static_escaped_and_small(hostile_store: FeatureStore, known_store: FeatureStore):
    for feature in hostile_store:
        page = feature._repr_html_()
        tags = set(re.findall(r"<(\w+)", page))
        assert tags <= {"div", "b", "br", "small", "span", "code", "svg", "rect", "title"}
        assert not re.search(r"<[^>]*\s(src|href|on\w+)=", page)
        assert len(page.encode()) < 30_000
    shown = known_store[0]._repr_html_()
    assert shown.count("rgba(240,140,0,0.70)") == 3  # the three tokens that reach the maximum
    assert shown.count("<rect") == 3
    assert "never fired on 14 tokens" in known_store[3]._repr_html_()


def test_save_and_load_give_the_same_store(hostile_store: FeatureStore, tmp_path: Path):
    folder = hostile_store.save(tmp_path / "features")
    assert sorted(path.name for path in folder.iterdir()) == ["features.json", "features.safetensors"]
    loaded = FeatureStore.load(folder)
    assert loaded.provenance == hostile_store.provenance
    assert loaded.table() == hostile_store.table()
    for latent in range(hostile_store.d_sae):
        before, after = hostile_store[latent], loaded[latent]
        assert after == before
        assert str(after) == str(before)
        for left, right in zip(before.contexts, after.contexts, strict=True):
            assert torch.equal(left.values, right.values)
            assert torch.equal(left.token_ids, right.token_ids)
    loaded.save(folder)  # over itself


def test_a_store_of_an_earlier_version_is_read(known_store: FeatureStore, tmp_path: Path):
    facts = known_store.save(tmp_path / "features") / "features.json"
    written = json.loads(facts.read_text())
    for name in ("architecture", "k", "is_stack"):
        del written["provenance"][name]
    facts.write_text(json.dumps(written))
    loaded = FeatureStore.load(tmp_path / "features")
    assert loaded.provenance == replace(known_store.provenance, architecture="", k=None, is_stack=False)
    assert loaded.order("clarity") == known_store.order("clarity")
    header, _ = embedded(loaded.dashboard(tmp_path / "page.html"))
    assert header["figures"] == [["dead fraction", "0.25"]]


def test_a_store_without_logits_is_saved_too(hostile_store: FeatureStore, tmp_path: Path):
    bare = replace(hostile_store, logits=None, logits_note="no logits here", logit_texts={})
    loaded = FeatureStore.load(bare.save(tmp_path / "bare"))
    assert loaded.logits is None
    assert loaded[0].logits_note == "no logits here"


def test_other_peoples_folders_are_not_replaced(known_store: FeatureStore, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileError, match="holds no features"):
        known_store.save(tmp_path)
    with pytest.raises(FileError, match="holds no features"):
        known_store.save(tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_what_is_missing_or_damaged_is_refused(known_store: FeatureStore, tmp_path: Path):
    with pytest.raises(FileError, match=r"nothing holds no features .* `monosema features RUN --save"):
        FeatureStore.load(tmp_path / "nothing")
    good = known_store.save(tmp_path / "good")

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    folder = damaged("version")
    (folder / "features.json").write_text('{"format": "something else"}')
    with pytest.raises(FileError, match="not a feature store"):
        FeatureStore.load(folder)
    folder = damaged("cut")
    (folder / "features.safetensors").write_bytes((good / "features.safetensors").read_bytes()[:100])
    with pytest.raises(FileError, match="cannot read"):
        FeatureStore.load(folder)
    folder = damaged("words")
    facts = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps({**facts, "vocabulary": ["one"]}))
    with pytest.raises(FileError, match="texts do not fit"):
        FeatureStore.load(folder)
    (folder / "features.json").write_text(json.dumps({**facts, "provenance": {"model": "x"}}))
    with pytest.raises(FileError, match="is damaged"):
        FeatureStore.load(folder)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("numbers.maximum", lambda value: value[:-1], "number of latents"),
        ("windows.crow", lambda value: value + 1, "entries"),
        ("windows.entry_position", lambda value: value + 6, "positions"),
        ("windows.context", lambda value: value + 50 * (value == 2), "contexts"),
        ("texts.text_ids", lambda value: -torch.ones_like(value), "texts"),
        ("logits.top_tokens", lambda value: value + 100, "logits"),
        ("logits.top_values", None, "is damaged"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(known_store: FeatureStore, tmp_path: Path, name, change, what):
    folder = known_store.save(tmp_path / "features")
    tensors = load_file(folder / "features.safetensors")
    tensors[name] = change(tensors[name]) if change else tensors.pop(name)
    if change is None:
        del tensors[name]
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "features.safetensors")
    with pytest.raises(FileError, match=what):
        FeatureStore.load(folder)
