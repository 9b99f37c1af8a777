"""Pareto fronts by hand, and what is drawn of them."""

from __future__ import annotations

import math
import re
from xml.etree.ElementTree import Element

import pytest
from page_reports import model_losses, report

from monosema.evaluation import Report
from monosema.evaluation.page.curves import curves, pareto_front
from monosema.evaluation.page.markers import legend
from monosema.evaluation.page.rows import grounds, rows_of

NAN = math.nan


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(8, 0.5)], [0]),
        ([(32, 0.9), (8, 0.5), (16, 0.7)], [1, 2, 0]),
        ([(8, 0.5), (16, 0.5), (32, 0.4), (64, 0.6)], [0, 3]),  # as high at a larger L0 is beaten, so is lower
        ([(8, 0.5), (8, 0.6), (8, 0.6)], [1, 2]),  # equal points beat each other as little as themselves
        ([(8, NAN), (NAN, 0.9), (16, 0.2), (4, math.inf)], [2]),
        ([(0, -3.0), (1, -2.0), (2, -2.5)], [0, 1]),
        ([(NAN, NAN)], []),
    ],
)
def test_fronts(points: list[tuple[float, float]], front: list[int]):
    assert pareto_front(points) == front


def drawn(reports: dict[str, Report]) -> list[Element]:
    rows = rows_of(reports)
    return curves(rows, grounds(rows))


def texts(picture: Element, of_class: str) -> list[str]:
    return [each.text or "" for each in picture.iter("text") if each.get("class") == of_class]


def points(picture: Element) -> dict[str, tuple[float, float, bool]]:
    """By name: place in the picture, and whether on a front."""
    found = {}
    for group in picture.iter("g"):
        if group.get("class") == "point":
            x, y = map(float, str(group.get("transform"))[len("translate(") : -1].split())
            marks = [mark for mark in group.iter("g") if "mark" in str(mark.get("class"))]
            assert len(marks) == 1
            name = str(group.find("title").text).splitlines()[0]
            found[name] = (x, y, "hollow" not in str(marks[0].get("class")))
    return found


def test_a_point_for_each_and_a_line_along_the_front():
    reports = {
        "a": report(8, 0.6, 0.7),
        "b": report(16, 0.8, 0.8),
        "c": report(32, 0.75, 0.9),
        "d": report(64, 0.9, 0.95),
    }
    fve, zero, mean = drawn(reports)
    placed = points(fve)
    assert {name: on_front for name, (_, _, on_front) in placed.items()} == {
        "a": True,
        "b": True,
        "c": False,
        "d": True,
    }
    assert all(on_front for _, _, on_front in points(zero).values())
    # equal ratios of L0 are equal lengths, and y falls as the figure rises
    assert placed["b"][0] - placed["a"][0] == pytest.approx(placed["d"][0] - placed["c"][0], abs=0.02)
    rise = (placed["a"][1] - placed["b"][1]) / (placed["b"][1] - placed["d"][1])
    assert rise == pytest.approx(0.2 / 0.1, rel=1e-3)
    (line,) = fve.iter("polyline")
    assert line.get("points") == " ".join(f"{placed[name][0]:.2f},{placed[name][1]:.2f}" for name in "abd")
    assert set(texts(fve, "label")) == set("abcd")
    assert "L0, latents per token, logarithmic →" in texts(fve, "title")
    assert [picture.find("h3").text for picture in (fve, zero, mean)] == [
        "Fraction of variance explained, over L0",
        "CE recovered, against zero ablation, over L0",
        "CE recovered, against mean ablation, over L0",
    ]


def test_intervals_are_bars_of_their_length():
    (fve, *_) = drawn({"a": report(10.0, 0.5), "b": report(20.0, 0.9)})
    placed = points(fve)
    per_unit = (placed["a"][1] - placed["b"][1]) / 0.4
    bars = [each.get("d") for each in fve.iter("path") if "bars" in str(each.get("class"))]
    assert len(bars) == 2
    low, high = map(float, re.search(r" ([\d.]+)V([\d.]+)", str(bars[0])).groups())
    assert low - high == pytest.approx(0.04 * per_unit, abs=0.05)
    assert "L0 10.0000  [9.0000, 11.0000]" in fve.find("svg").findall("g")[0].find("title").text


def test_what_is_not_comparable_has_a_front_of_its_own():
    elsewhere = {"hook_name_out": "blocks.2.hook_resid_post"}
    reports = {
        "a": report(8, 0.9),
        "b": report(16, 0.8),
        "site": report(16, 0.7, **elsewhere),
        "site too": report(32, 0.8, **elsewhere),
        "model": report(32, 0.5, model_name="other"),
        "tokens": report(64, 0.4, tokens_fingerprint="cd" * 32),
    }
    (fve, *_) = drawn(reports)
    assert [name for name, (_, _, on_front) in points(fve).items() if not on_front] == ["b"]
    assert len(list(fve.iter("polyline"))) == 1
    labels = ["".join(item.itertext()) for item in legend(grounds(rows_of(reports)))]
    assert labels == [
        "tiny · blocks.1.hook_resid_post · tokens abababab",
        "tiny · blocks.2.hook_resid_post",
        "other · blocks.1.hook_resid_post",
        "tiny · blocks.1.hook_resid_post · tokens cdcdcdcd",
    ]


def test_without_losses_there_is_one_picture_and_without_figures_none():
    (fve,) = drawn({"a": report(score=None), "b": report(8, score=None)})
    assert len(points(fve)) == 2
    assert drawn({"a": report(fve=NAN, score=None)}) == []
    fve, zero, _ = drawn({"a": report(), "b": report(score=None), "c": report(score=NAN)})
    assert (len(points(fve)), len(points(zero))) == (3, 1)
    assert "2 without this figure" in "".join(zero.itertext())


@pytest.mark.parametrize("l0", [[0.0], [0.0, 0.0], [16.0, 16.0], [0.0, 64.0]])
def test_odd_l0s_are_drawn(l0: list[float]):
    (fve,) = drawn({str(i): report(value, score=None) for i, value in enumerate(l0)})
    assert all(46 <= x <= 388 and 26 <= y <= 262 for x, y, _ in points(fve).values())
    assert "L0, latents per token, linear →" in texts(fve, "title")


def test_a_dictionary_over_models_has_a_point_for_each_model():
    models = {"base": model_losses(0.7), "chat": model_losses(0.6)}
    both = report(score=None, model_name="base: x, chat: y", models=models)
    fve, zero, _ = drawn({"both": both, "one": report(8)})
    assert set(points(fve)) == {"both", "one"}
    assert set(points(zero)) == {"both (base)", "both (chat)", "one"}


def test_names_that_find_no_room_are_counted():
    (fve,) = drawn({f"dictionary {i}": report(16 + i / 1000, 0.8, None) for i in range(40)})
    n_shown = len(texts(fve, "label"))
    assert 1 <= n_shown < 40
    assert f"{40 - n_shown} without room for a name" in "".join(fve.itertext())
    assert len(points(fve)) == 40
