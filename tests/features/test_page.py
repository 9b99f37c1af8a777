"""The page in a browser; skipped with the reason where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import MARKS, click, colours, contrast, keys, luminance, opened, prefer, started_browser, texts, wait
from features_tiny import stack_store

from monosema.features import FeatureStore

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with started_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, hostile_store: FeatureStore, tmp_path: Path) -> Iterator[Any]:
    path = hostile_store.dashboard(tmp_path / "page.html", figures={"FVE": 0.75, "L0": 6.0})
    with opened(browser, path, "blocks.0.hook_resid_post (tiny-llama)"):
        yield browser


def indices(page: Any) -> list[int]:
    return [int(text) for text in texts(page, ".row .index")]


def test_sorting_by_every_number(page: Any, hostile_store: FeatureStore):
    shown = indices(page)
    assert len(shown) > 20
    assert shown == hostile_store.order("clarity")[: len(shown)]
    for key in ("density", "maximum", "mean"):
        click(page, f"[data-key={key}]")
        assert indices(page) == hostile_store.order(key)[: len(shown)]
        click(page, f"[data-key={key}]")
        assert indices(page) == hostile_store.order(key, descending=False)[: len(shown)]
        headings = page.execute_script(
            "return [...document.querySelectorAll('[aria-sort]')].map(each => each.getAttribute('aria-sort'))"
        )
        assert sorted(headings) == ["ascending", "none", "none", "none", "none"]
    click(page, "[data-key=index]")
    assert indices(page) == hostile_store.alive.tolist()[: len(shown)]


def search(page: Any, text: str, scope: str) -> int:
    """Type a query and return how many latents are found."""
    page.execute_script(
        """const [text, scope] = arguments, query = document.getElementById("query");
        document.getElementById("scope").value = scope;
        query.value = text;
        query.dispatchEvent(new Event("input"));
        query.form.requestSubmit();""",
        text,
        scope,
    )
    found = texts(page, "#found")[0]
    return int(found.split()[0])


def test_searching_by_number_and_by_text(page: Any, hostile_store: FeatureStore):
    wanted = hostile_store.alive.tolist()[7]
    assert search(page, str(wanted), "latent") == 1
    assert indices(page) == [wanted]
    assert texts(page, "#detail h2") == [f"Latent {wanted}"]
    search(page, str(wanted), "anywhere")
    assert indices(page)[0] == wanted
    before, after = 24, 12
    for needle in ("<script>", "漢字", "שלום", "script> AND", "👩\u200d💻"):
        in_contexts, active = set(), set()
        for feature in hostile_store:
            for context in feature.contexts:
                spans = context.window(before, after)
                lower = [span.text.lower() for span in spans]
                joined, start = "".join(lower), 0
                at = [i for i in range(len(joined)) if joined.startswith(needle.lower(), i)]
                if at:
                    in_contexts.add(feature.index)
                for span, text in zip(spans, lower, strict=True):
                    stop = start + len(text)
                    if span.value > 0 and any(i < stop and start < i + len(needle) for i in at):
                        active.add(feature.index)
                    start = stop
        assert in_contexts, needle
        assert search(page, needle, "contexts") == len(in_contexts)
        assert search(page, needle, "active") == len(active)
    token = hostile_store[wanted].top_logits[0].text
    expected = [
        feature.index
        for feature in hostile_store
        if any(token.lower() in effect.text.lower() for effect in (*feature.top_logits, *feature.bottom_logits))
    ]
    assert search(page, token, "logits") == len(expected)
    assert search(page, "no such text anywhere", "anywhere") == 0
    assert "No latent matches" in texts(page, ".nothing")[0]
    assert search(page, "", "anywhere") == len(hostile_store)


def test_typing_searches_after_a_moment(page: Any, hostile_store: FeatureStore):
    keys(page, "/")
    keys(page, "script")
    wait(lambda: " of " in texts(page, "#found")[0])
    keys(page, "\ue00c")  # escape
    wait(lambda: texts(page, "#found")[0] == f"{len(hostile_store)} latents")


def test_typing_a_number_opens_that_latent(page: Any, hostile_store: FeatureStore):
    alive = hostile_store.alive.tolist()
    asked = next(
        each for each in alive if each < 10 and any(other != each and str(each) in str(other) for other in alive)
    )
    keys(page, "/")
    keys(page, str(asked))
    wait(lambda: " of " in texts(page, "#found")[0])
    assert texts(page, "#detail h2") == [f"Latent {asked}"]
    assert page.execute_script("return location.hash") == f"#{asked}"
    assert search(page, "99999", "latent") == 0
    assert texts(page, "#found") == [f"0 of {len(alive)} · there is no latent 99999"]
    assert texts(page, "#detail h2") == [f"Latent {asked}"]


def test_what_is_short_explains_itself(page: Any):
    mark, context = texts(page, ".mark small")[0], texts(page, ".contexts")[0]
    number, position = mark.split(":")
    assert mark in context
    tip = page.execute_script("return document.querySelector('.mark small').dataset.tip")
    assert tip.startswith(f"context {number} of the held-out text, token {position}")
    legend = [each for each in texts(page, "#detail .hint") if mark in each]
    assert f"{mark} is token {position} of context {number} of the held-out text" in legend[0]
    assert "↵·12 a line break and 12 spaces" in legend[0]


_BEYOND = """const list = [...document.querySelectorAll(arguments[0])].filter(each => each.offsetParent);
    const beyond = list.filter(each => each.scrollWidth > each.clientWidth + 1);
    return beyond.map(each => each.className + each.textContent)"""
_OVERLAPPING = """const found = [];
    for (const row of document.querySelectorAll("#columns, .row")) {
      const boxes = [...row.children].filter(each => each.offsetParent).map(each => each.getBoundingClientRect());
      const edge = document.getElementById("list").getBoundingClientRect().right;
      boxes.forEach((box, i) => {
        if (box.right > (i + 1 < boxes.length ? boxes[i + 1].left : edge) + 0.5) found.push(`${row.id} ${i}`);
      });
    }
    return found"""


@pytest.mark.parametrize("width", [1600, 1000, 700, 390])
def test_nothing_overlaps_in_any_width(browser: Any, tmp_path: Path, width: int):
    _, store = stack_store(writes=("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"))
    long = "no logits: " + "+".join(f"blocks.{layer}.hook_mlp_out" for layer in range(9))
    store = replace(store, logits_note=long)
    path = store.dashboard(tmp_path / "page.html", title="stack", figures={"run": "a-run-with-a-long-name-" * 4})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        with opened(browser, path, "stack") as page:
            assert long in texts(page, ".card .hint")
            assert page.execute_script(_BEYOND, ".card, .hint, #masthead, #columns, .row, #search, #detail") == []
            assert page.execute_script(_OVERLAPPING) == []
            assert page.execute_script("return document.documentElement.scrollWidth") <= width
            latent = int(texts(page, "#detail h2")[0].split()[1])
            assert texts(page, ".layer")[0].startswith(f"{store[latent].layer} · reads ")
            assert texts(page, ".row .index small")[0] == store[latent].layer
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_latent_opens_with_its_numbers_and_contexts(page: Any, hostile_store: FeatureStore):
    click(page, "[data-key=index]")
    click(page, ".row:nth-child(3)")
    feature = hostile_store[hostile_store.alive.tolist()[2]]
    assert texts(page, "#detail h2") == [f"Latent {feature.index}"]
    assert page.execute_script("return location.hash") == f"#{feature.index}"
    assert f"{feature.count:,} of {feature.n_tokens:,} tokens" in texts(page, ".stats")[0]
    assert len(texts(page, ".histogram .fill")) == sum(count > 0 for count in feature.histogram.counts)
    click(page, "#toggle-full")
    lines = texts(page, ".contexts .text")
    assert len(lines) == len(feature.contexts)
    for line, context in zip(lines, feature.contexts, strict=True):
        expected = "".join(span.text for span in context.window(24, 12)).replace("\n", "")
        assert line.strip("…").replace(" ", "") == expected.strip("…").replace(" ", "")
    peaks = texts(page, ".contexts .peak")
    assert len(peaks) == len(feature.contexts)
    click(page, "#toggle-breaks")
    whole = [
        "".join(span.text for span in context.window(24, 12)) == line.strip("…")
        for line, context in zip(texts(page, ".contexts .text"), feature.contexts, strict=True)
    ]
    assert all(whole)


def test_the_keyboard_is_enough(page: Any, hostile_store: FeatureStore):
    order = hostile_store.order("clarity")
    page.execute_script("document.getElementById('grid').focus()")
    keys(page, "\ue015", "\ue015")  # down, down
    assert texts(page, "#detail h2") == [f"Latent {order[2]}"]
    keys(page, "\ue010")  # end
    assert texts(page, "#detail h2") == [f"Latent {order[-1]}"]
    assert order[-1] in indices(page)  # scrolled into sight
    keys(page, "k")
    assert texts(page, "#detail h2") == [f"Latent {order[-2]}"]
    selected = page.execute_script("return document.getElementById('grid').getAttribute('aria-activedescendant')")
    assert selected == f"row-{order[-2]}"
    assert page.execute_script("return document.getElementById(arguments[0]).getAttribute('aria-selected')", selected)
    keys(page, "f")
    assert page.execute_script("return document.getElementById('toggle-full').getAttribute('aria-pressed')") == "true"


def test_a_tooltip_gives_the_value(page: Any):
    script = """const token = document.querySelector(".tok.peak"), box = token.getBoundingClientRect();
        token.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: box.left + 1, clientY: box.top + 1}));
        return [document.getElementById("tip").textContent, document.getElementById("tip").hidden];"""
    tip, hidden = page.execute_script(script)
    assert not hidden
    assert tip.startswith(texts(page, ".mark")[0].split(texts(page, ".mark small")[0])[0])
    assert "100 % of its maximum" in tip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page: Any, scheme: str):
    prefer(page, scheme)
    ink, panel = colours(page, "--ink", "--panel")
    assert contrast(ink, panel) > 10
    assert (luminance(panel) > 0.5) == (scheme == "light")
