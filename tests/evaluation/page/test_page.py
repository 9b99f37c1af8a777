"""The page in a browser; skipped with the reason where there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import MARKS, click, colours, contrast, keys, luminance, opened, prefer, started_browser, texts
from evaluation_tiny import identity_sae, random_sae, tiny_contexts
from page_reports import latent_table, report

from monosema.evaluation import Report, evaluate_many, write_page
from monosema.evaluation.page.latents import COLUMNS
from monosema.models import LanguageModel

pytestmark = MARKS

HOSTILE = "</script><script>document.title='no'</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with started_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def reports(decoder: LanguageModel) -> dict[str, Report]:
    coders = {"x/k10": random_sae(), "x/k9": identity_sae(), f"x/{HOSTILE}": random_sae("blocks.2.hook_resid_pre")}
    made = evaluate_many(coders, decoder, tiny_contexts(decoder))
    loaded = Report.from_dict(json.loads(json.dumps(made["x/k10"].to_dict())))
    return {**made, "x/read": loaded, "x/activations": report(l0=20.5, fve=math.nan, score=None)}


@pytest.fixture
def page(browser: Any, reports: dict[str, Report], tmp_path: Path) -> Iterator[Any]:
    write_page(reports, tmp_path / "page.html")
    with opened(browser, tmp_path / "page.html", "5 dictionaries compared"):
        yield browser


def choose(page: Any, **values: str) -> None:
    """Values of the controls above the latents, by id."""
    script = """for (const [id, value] of Object.entries(arguments[0])) {
        const control = document.getElementById(id);
        control.value = value;
        control.dispatchEvent(new Event(control.tagName === "INPUT" ? "input" : "change"));
    }"""
    page.execute_script(script, values)


def shown_latents(page: Any) -> list[int]:
    return [int(text) for text in texts(page, ".row > :first-child")]


def directions(page: Any, within: str) -> dict[str, str]:
    script = """return Object.fromEntries([...document.querySelectorAll(arguments[0] + " [aria-sort]")].map(
        cell => [cell.querySelector("button").dataset.key, cell.getAttribute("aria-sort")]))"""
    return page.execute_script(script, within)


def test_figures_are_sorted_by_what_is_clicked(page: Any, reports: dict[str, Report]):
    names = list(reports)
    shown = "#figures tbody .name"
    assert texts(page, shown) == [name[2:] for name in names]
    click(page, "#figures [data-key=l0] button")
    falling = sorted(names, key=lambda name: -reports[name].l0)
    assert texts(page, shown) == [name[2:] for name in falling]
    click(page, "#figures [data-key=l0] button")
    assert [reports[f"x/{name}"].l0 for name in texts(page, shown)] == sorted(each.l0 for each in reports.values())
    assert {key for key, way in directions(page, "#figures").items() if way != "none"} == {"l0"}
    for _ in range(2):  # what is not defined is last in both directions
        click(page, "#figures [data-key=fve] button")
        assert texts(page, shown)[-1] == "activations"
    click(page, "#figures [data-key=name] button")
    assert texts(page, shown)[-3:] == ["k9", "k10", "read"]
    values = page.execute_script(
        """return Object.fromEntries([...document.querySelectorAll("#figures tbody tr")].map(
            row => [row.querySelector(".name").textContent, row.cells[6].dataset.value ?? null]))"""
    )
    expected = {name[2:]: None if math.isnan(each.fve) else each.fve for name, each in reports.items()}
    assert {name: None if value is None else float(value) for name, value in values.items()} == expected


def test_latents_are_those_of_the_dictionary_chosen(page: Any, reports: dict[str, Report]):
    table = reports["x/k10"].latents
    assert table is not None
    assert shown_latents(page)[:3] == [0, 1, 2]
    assert texts(page, "#found") == ["24 of 24"]
    index, density, *others = texts(page, ".row:first-child > *")
    assert (index, len(others)) == ("0", 9)
    assert float(density.removesuffix(" %")) == pytest.approx(100 * table.density[0].item(), rel=5e-3)
    for shown, (name, _, _) in zip(others, COLUMNS[1:], strict=True):
        assert float(shown.replace("—", "nan")) == pytest.approx(
            getattr(table, name)[0].item(), rel=5e-3, nan_ok=True
        ), name
    choose(page, dictionary="1")
    assert texts(page, "#found") == ["32 of 32"]
    choose(page, dictionary="3")
    assert "The table of latents of read was not saved" in texts(page, ".nothing")[0]
    assert texts(page, ".row") == []
    choose(page, dictionary="0", query="7, 3 10-12")
    assert shown_latents(page) == [3, 7, 10, 11, 12]
    choose(page, query="seven")
    assert "such as 7, 100-120" in texts(page, ".nothing")[0]
    choose(page, query="99")
    assert texts(page, ".nothing") == ["No latent matches."]
    choose(page, query="", activity="dead")
    dead = (table.density == 0).nonzero().flatten().tolist()
    assert (shown_latents(page) or [-1]) == (dead or [-1])
    choose(page, activity="alive")
    assert len(shown_latents(page)) == 24 - len(dead)


@pytest.mark.parametrize("key", ["density", "max_encoder_cosine", "max_activation", "mean_activation"])
def test_latents_are_sorted_by_any_column(page: Any, reports: dict[str, Report], key: str):
    table = reports["x/k10"].latents
    assert table is not None
    values = [math.inf if math.isnan(value) else -value for value in getattr(table, key).float().tolist()]
    falling = sorted(range(24), key=lambda row: (values[row], row))
    click(page, f"#columns [data-key={key}]")
    assert shown_latents(page) == falling[: len(shown_latents(page))]
    assert directions(page, "#columns")[key] == "descending"
    choose(page, dictionary="1")  # the order stays that of the column
    assert directions(page, "#columns")[key] == "descending"


def test_many_latents_are_rows_only_where_they_are_seen(browser: Any, tmp_path: Path):
    write_page({"many": report(latents=latent_table(32_768), d_sae=32_768)}, tmp_path / "page.html")
    with opened(browser, tmp_path / "page.html", "many") as page:
        assert len(shown_latents(page)) < 60
        page.execute_async_script(
            """const done = arguments[0];
            document.getElementById("scroller").scrollTop = 30 * 20000;
            requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done)));"""
        )
        assert 20_000 in shown_latents(page) and len(shown_latents(page)) < 60


def test_the_keyboard_sorts(page: Any, reports: dict[str, Report]):
    page.execute_script("document.querySelector('#figures [data-key=l0] button').focus()")
    keys(page, "\ue007")  # enter
    assert directions(page, "#figures")["l0"] == "descending"
    page.execute_script("document.querySelector('#columns [data-key=density]').focus()")
    keys(page, " ")
    assert directions(page, "#columns")["density"] == "descending"
    assert page.execute_script("return document.activeElement.dataset.key") == "density"


def test_tips_say_what_a_point_is(page: Any, reports: dict[str, Report]):
    tip = page.execute_script(
        """const point = document.querySelector(".point path"), box = point.getBoundingClientRect();
        point.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: box.left + 1, clientY: box.top + 1}));
        return document.getElementById("tip").textContent"""
    )
    assert tip.splitlines()[0] in {name[2:] for name in reports}
    assert [line.split()[0] for line in tip.splitlines()[1:3]] == ["L0", "FVE"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_seen_in_light_and_dark(page: Any, scheme: str):
    prefer(page, scheme)
    panel, *grounds = colours(page, "--panel", *(f"--g{place}" for place in range(7)))
    assert (luminance(panel) > 0.5) == (scheme == "light")
    assert min(contrast(colour, panel) for colour in grounds) >= 3
    assert len(set(grounds)) == 7


def test_a_phone_shows_it_without_scrolling_sideways(page: Any):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        widths = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths == [360, 360]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_in_the_pictures_do_not_overlap(page: Any):
    overlaps = page.execute_script(
        """const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
        return [...document.querySelectorAll(".plot")].map(plot => {
            const boxes = [...plot.querySelectorAll(".label")].map(label => label.getBoundingClientRect());
            return boxes.filter((box, i) => boxes.some((other, j) => j < i && meet(box, other))).length;
        })"""
    )
    assert set(overlaps) == {0}
