"""The page as a file: what it holds is what the reports hold, and no name or note is markup in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from page_reports import latent_table, model_losses, report
from page_source import Elements, embedded, require_offline

from monosema.core.errors import ConfigError, FileError
from monosema.evaluation import Report, write_page
from monosema.evaluation.page.densities import densities
from monosema.evaluation.page.latents import COLUMNS
from monosema.evaluation.page.rows import grounds, rows_of
from monosema.evaluation.page.tables import figures_table, provenance_table

HOSTILE = "</title></script><script>alert(1)</script>\u202e&amp;{{header}}"


def cells(reports: dict[str, Report]) -> tuple[list[dict[str, Element]], list[str]]:
    """Of each line of the table, its cells by the figure's name; and the reasons."""
    rows = rows_of(reports)
    table, reasons = figures_table(rows, grounds(rows))
    keys = [str(each.get("data-key")) for each in table.findall("thead/tr")[1]]
    lines = [dict(zip(keys, line, strict=True)) for line in table.findall("tbody/tr")]
    return lines, ["".join(each.itertext()) for each in reasons]


def test_the_table_has_the_figures_and_their_intervals():
    (line,), reasons = cells({"a": report(16.0, 0.8123456)})
    assert reasons == []
    assert float(line["fve"].get("data-value")) == 0.8123456
    assert line["fve"].text == "0.8123"
    assert line["fve"].find("small").text == "0.7923 – 0.8323"
    assert (line["l0"].text, line["d_sae"].text, line["n_tokens"].text) == ("16.000", "40", "1,000")
    assert line["ablations/zero/ce_loss_score"].text == "0.9000"
    assert line["ablations/mean/ce_loss_score"].text == "0.8500"
    assert line["mse"].find("small") is None
    assert "".join(line["name"].itertext()) == "a"


def test_what_is_missing_is_a_dash_with_its_reason():
    (first, second), reasons = cells({"a": report(fve=math.nan, score=None), "b": report(encoder_decoder_cosine=None)})
    assert reasons[0].startswith("predictions were not compared")
    for line, key, number in ((first, "kl", 1), (first, "fve", 2), (second, "encoder_decoder_cosine", 3)):
        assert "".join(line[key].itertext()) == f"—{number}"
        assert line[key].get("title") == reasons[number - 1]
        assert line[key].get("data-value") is None
    assert len(reasons) == 3


def test_small_and_large_figures_keep_their_digits():
    (line,), _ = cells(
        {"a": report(mse=123.456789, norm_ratio=0.0001234, kl=0.0, relative_reconstruction_bias=-12345.6)}
    )
    shown = [line[key].text for key in ("mse", "norm_ratio", "kl", "relative_reconstruction_bias")]
    assert shown == ["123.46", "0.0001234", "0.0000", "-1.235e+04"]


def test_a_line_for_each_model():
    models = {"base": model_losses(0.7), "chat": model_losses(0.6)}
    lines, _ = cells({"a": report(score=None, model_name="base: x, chat: y", models=models)})
    assert ["".join(line["name"].itertext()) for line in lines] == ["amodel base", "amodel chat"]
    assert [line["ablations/zero/ce_loss_score"].text for line in lines] == ["0.7000", "0.6000"]


def test_dictionaries_measured_alike_share_a_line():
    reports = {
        "x/a": report(notes=("mind this",), overlap="none"),
        "x/b": report(8, notes=("mind this",), overlap="none"),
        "x/c": report(hook_name="", hook_name_out="out", split="", tokens_fingerprint=None, score=None),
    }
    lines = provenance_table(rows_of(reports), list(reports)).findall("tbody/tr")
    texts = [[["".join(line.itertext()) for line in cell] for cell in row] for row in lines]
    assert texts[0][0] == ["x/a", "x/b"]
    assert texts[0][2] == ["blocks.1.hook_resid_post"]
    assert texts[0][3] == ["1,000 of held-out", "none of them trained on", "sha256 abababababababab…"]
    assert texts[0][4:] == [["zero, mean"], ["mind this"]]
    assert texts[1][1:3] == [["none run"], ["not recorded → out"]]
    assert texts[1][3][0] == "1,000 of a split not recorded"


def test_densities_share_axes_and_set_the_dead_apart():
    fuller = [0] * 20
    fuller[0], fuller[10], fuller[19] = 36, 2, 2
    reports = {"a": report(), "b": report(log10_density_histogram=tuple(fuller), n_alive=4, dead_fraction=0.9)}
    rows = rows_of({**reports, "c": report(log10_density_histogram=None)})
    first, second, empty = densities(rows, grounds(rows))
    assert "Its report has no firing densities." in "".join(empty.itertext())
    assert "40 latents, 4 never fired (10 %)" in "".join(first.itertext())
    ticks = [[each.text for each in picture.iter("text") if not each.get("class")] for picture in (first, second)]
    assert ticks[0] == ticks[1] == ["0", "10", "20", "30", "40", "50", "1", "10⁻¹", "10⁻²", "10⁻³", "10⁻⁴", "10⁻⁵"]
    bars = [list(picture.iter("rect")) for picture in (first, second)]
    assert [len(each) for each in bars] == [4, 3]
    assert [each.get("class") for each in bars[0]] == ["dead", "g0", "g0", "g0"]
    assert bars[0][2].find("title").text == "20 latents (50 %): on 1 % to 3.2 % of the tokens"
    heights = [float(each.get("height")) for each in bars[0]]
    assert heights[2] / heights[3] == pytest.approx(2, rel=1e-3)
    assert heights[2] == pytest.approx(114)  # the largest of those that fired, from 138 up to 24
    assert "↑ 90 %" in "".join(second.itertext())  # cut off at the top, and said so


def test_every_latent_is_in_the_page(tmp_path: Path):
    table = latent_table()
    reports = {"x/a": report(), "x/b": report(latents=table)}
    write_page(reports, tmp_path / "page.html")
    header, arrays = embedded(tmp_path / "page.html")
    assert header["dictionaries"] == [
        {"name": "a", "n_tokens": 1000, "n_latents": None},
        {"name": "b", "n_tokens": 1000, "n_latents": 40},
    ]
    assert set(arrays) == {f"1/{name}" for name, _, _ in COLUMNS}
    assert arrays["1/density"].tolist() == [round(1000 * each) for each in table.density.tolist()]
    for name, _, _ in COLUMNS[1:]:
        np.testing.assert_allclose(arrays[f"1/{name}"], getattr(table, name).numpy(), rtol=2**-16)


def test_names_and_notes_are_never_markup(tmp_path: Path):
    hostile = {"hook_name_out": HOSTILE, "model_name": HOSTILE, "notes": (HOSTILE,), "latents": latent_table()}
    plain = {"hook_name_out": "x", "model_name": "x", "notes": ("x",), "latents": latent_table()}
    write_page({HOSTILE: report(**hostile)}, tmp_path / "hostile.html")
    write_page({"x": report(**plain)}, tmp_path / "plain.html")
    pages = [(tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("hostile", "plain")]
    assert [tag for tag, _ in Elements(pages[0]).tags] == [tag for tag, _ in Elements(pages[1]).tags]
    assert pages[0].count("<script") == 3
    assert "\u202e" not in pages[0]
    header_text = Elements(pages[0]).scripts[0]
    assert header_text.isascii() and not set("<>&") & set(header_text)
    assert json.loads(header_text)["dictionaries"][0]["name"].startswith("</title>")
    assert "&lt;/title&gt;&lt;/script&gt;" in pages[0]
    assert "{{header}}" in pages[0]  # not filled in


def test_the_page_asks_the_network_for_nothing(tmp_path: Path):
    write_page({"a": report(latents=latent_table())}, tmp_path / "page.html")
    require_offline(tmp_path / "page.html")


def test_reports_read_from_json_make_the_same_page_but_for_latents(tmp_path: Path):
    reports = {"a": report(), "b": report(8, mse=math.nan)}
    loaded = {}
    for name, each in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(each.to_dict(), allow_nan=False))
        loaded[name] = Report.load(tmp_path / f"{name}.json")
    write_page(reports, tmp_path / "made.html")
    write_page(loaded, tmp_path / "read.html")
    assert (tmp_path / "made.html").read_bytes() == (tmp_path / "read.html").read_bytes()


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no report given"):
        write_page({}, tmp_path / "page.html")
    (tmp_path / "page.html").mkdir()
    with pytest.raises(FileError, match="cannot write"):
        write_page({"a": report()}, tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
