"""The page as a file: what it embeds is what the store holds, and no text of the corpus is markup in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features_tiny import HOSTILE, byte_level_tokenizer, text_store
from page_source import Elements, embedded, require_offline

from monosema.core.errors import ConfigError, UserError
from monosema.features import FeatureStore
from monosema.features.render import number


def shown_windows(header: dict[str, Any], arrays: dict[str, np.ndarray], row: int) -> list[tuple[int, int, list[Any]]]:
    """(context, position of the maximum, [[text, share], …]) of the windows of one row."""
    windows = []
    for window in range(arrays["window_from"][row], arrays["window_from"][row + 1]):
        shares = {}
        for entry in range(arrays["entry_from"][window], arrays["entry_from"][window + 1]):
            shares[int(arrays["entry_offset"][entry])] = int(arrays["entry_share"][entry]) / header["share"]
        groups: list[Any] = []
        for offset in range(arrays["window_length"][window]):
            text = int(arrays["pool_text"][int(arrays["window_pool"][window]) + offset])
            if text:
                groups.append([header["strings"][text], 0.0])
            groups[-1][1] = max(groups[-1][1], shares.get(offset, 0.0))
        position = int(arrays["window_start"][window]) + int(arrays["window_peak"][window])
        windows.append((int(arrays["window_context"][window]), position, groups))
    return windows


@pytest.mark.parametrize(("before", "after"), [(24, 12), (2, 1), (0, 0)])
def test_the_page_holds_what_the_store_holds(hostile_store: FeatureStore, tmp_path: Path, before: int, after: int):
    path = hostile_store.dashboard(tmp_path / "page.html", before=before, after=after)
    header, arrays = embedded(path)
    assert arrays["latent"].tolist() == hostile_store.alive.tolist()
    assert header["n_tokens"] == hostile_store.numbers.n_tokens
    for row, feature in enumerate(hostile_store):
        assert arrays["count"][row] == feature.count
        assert arrays["clarity"][row] == hostile_store.clarity[feature.index]
        assert arrays["maximum"][row] == pytest.approx(feature.maximum)
        assert arrays["mean"][row] == pytest.approx(feature.mean)
        bins = arrays["histogram"].reshape(-1, header["n_bins"])[row]
        assert bins.tolist() == list(feature.histogram.counts)
        for end, effects in (("top", feature.top_logits), ("bottom", feature.bottom_logits)):
            assert effects is not None
            texts = arrays[f"{end}_text"].reshape(-1, header["n_logits"])[row]
            assert [header["strings"][text] for text in texts] == [effect.text for effect in effects]
            values = arrays[f"{end}_value"].reshape(-1, header["n_logits"])[row]
            assert values.tolist() == pytest.approx([effect.value for effect in effects])
        shown = shown_windows(header, arrays, row)
        assert len(shown) == len(feature.contexts)
        for (context_id, position, groups), context in zip(shown, feature.contexts, strict=True):
            assert (context_id, position) == (context.context_id, context.position)
            spans = context.window(before, after)
            assert [text for text, _ in groups] == [span.text for span in spans]
            assert [share for _, share in groups] == pytest.approx(
                [span.value / feature.maximum for span in spans], abs=1 / header["share"]
            )
            assert all((share > 0) == (span.value > 0) for (_, share), span in zip(groups, spans, strict=True))


def test_text_from_the_corpus_is_never_markup(hostile_store: FeatureStore, tmp_path: Path):
    path = hostile_store.dashboard(
        tmp_path / "p.html", title="</title><script>alert(6)</script>", figures={"<b>": "<i>"}
    )
    page = path.read_text(encoding="utf-8")
    plain = text_store(["harmless words " * 9], byte_level_tokenizer([])).dashboard(tmp_path / "plain.html")
    tags = [tag for tag, _ in Elements(page).tags]
    assert tags == [tag for tag, _ in Elements(plain.read_text(encoding="utf-8")).tags]
    assert page.count("</script") == page.count("<script") == 3
    header_text = Elements(page).scripts[0]
    assert not re.search("[<>&\u2028\u2029\x00]", header_text)
    assert header_text.isascii()
    joined = "".join(json.loads(header_text)["strings"])
    assert "<" in joined  # the text is there, escaped


def test_the_page_asks_the_network_for_nothing(hostile_store: FeatureStore, tmp_path: Path):
    require_offline(hostile_store.dashboard(tmp_path / "page.html"))


def test_options_choose_what_is_shown(hostile_store: FeatureStore, tmp_path: Path):
    alive = hostile_store.alive.tolist()
    path = hostile_store.dashboard(
        tmp_path / "page.html",
        latents=[alive[3], alive[1], alive[3]],
        title="Mine",
        figures={"FVE": 0.75123, "L0": 6, "KL": None, "odd": float("nan"), "model": "tiny\u202e"},
        contexts_per_latent=2,
    )
    header, arrays = embedded(path)
    assert arrays["latent"].tolist() == [alive[1], alive[3]]
    assert max(np.diff(arrays["window_from"].astype(int))) <= 2
    assert header["title"] == "Mine"
    dead = 1 - len(hostile_store) / hostile_store.d_sae
    assert header["figures"] == [
        ["architecture", "TopK SAE"],
        ["k", "6"],
        ["FVE", "0.751"],
        ["L0", "6"],
        ["odd", "undefined"],
        ["model", "tiny⟨U+202E⟩"],
        ["dead fraction", number(dead)],
    ]
    for options in ({"before": -1}, {"after": -1}, {"contexts_per_latent": 0}):
        with pytest.raises(ConfigError):
            hostile_store.dashboard(tmp_path / "no.html", **options)
    with pytest.raises(UserError, match="none of these latents fired"):
        hostile_store.dashboard(tmp_path / "no.html", latents=[])
    with pytest.raises(UserError, match="latents must be 0 to 47"):
        hostile_store.dashboard(tmp_path / "no.html", latents=[48])
    assert not (tmp_path / "no.html").exists()


def test_a_store_read_back_makes_the_same_page(hostile_store: FeatureStore, tmp_path: Path):
    loaded = FeatureStore.load(hostile_store.save(tmp_path / "features"))
    pages = [store.dashboard(tmp_path / f"{i}.html").read_bytes() for i, store in enumerate((hostile_store, loaded))]
    assert pages[0] == pages[1]


def test_pages_grow_with_what_they_show_only(tmp_path: Path):
    tokenizer = byte_level_tokenizer(HOSTILE)
    store = text_store(HOSTILE * 8, tokenizer, d_sae=512)
    size = len(store.dashboard(tmp_path / "page.html").read_bytes())
    torch.testing.assert_close(len(store), 512, rtol=0.5, atol=0)
    assert size < 60_000 + 1500 * len(store)
