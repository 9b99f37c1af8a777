"""The report as text, table and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from known_report import report

from monosema.core.config import made_of
from monosema.core.errors import FileError
from monosema.evaluation import AblationLosses, ModelLosses, Report
from monosema.metrics.figure import GROUPS, figures_of, shown_in_groups
from monosema.metrics.figures_of_runs import PredictionFigures


def test_text_shows_what_was_measured_and_nothing_else():
    text = str(report(notes=("look here",)))
    assert text.splitlines()[0] == "2,048 latents at blocks.1.hook_resid_post"
    assert "fve                           0.7500" in text
    assert "mse                           1.235e+04" in text
    assert "relative_reconstruction_bias  undefined" in text
    assert "n_tokens                      200,192" in text
    assert "look here" in text
    assert "ce_loss_score" not in text


def test_title_names_both_sites_model_and_ablation():
    text = str(report(hook_name_out="blocks.1.hook_mlp_out", model_name="gpt2", ablation="mean", ce_loss_score=0.5))
    assert "blocks.1.hook_resid_post -> blocks.1.hook_mlp_out of gpt2 (mean ablation)" in text.splitlines()[0]
    assert "ce_loss_score                 0.5000" in text


def test_json_holds_every_field_and_no_nan():
    plain = json.loads(json.dumps(report(ce_clean=3.0).to_dict(), allow_nan=False))
    long = {"firing_density", "fve_per_dimension", "pattern_kl_per_position", "latents"}
    assert set(plain) == {field.name for field in fields(Report)} - long | {"version"}
    assert plain["relative_reconstruction_bias"] is None
    assert (plain["fve"], plain["ce_clean"], plain["ce_spliced"], plain["notes"]) == (0.75, 3.0, None, [])
    assert report().to_dict(per_latent=True)["firing_density"] == [0.5, 0.0]


def test_json_gives_the_report_back():
    whole = report(relative_reconstruction_bias=1.0, ce_clean=3.0, notes=("a", "b"), ablation="zero")
    assert Report.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    undefined = Report.from_dict(json.loads(json.dumps(report(fve=math.nan, kl=math.nan).to_dict())))
    assert math.isnan(undefined.fve)
    assert undefined.kl is None


def test_figures_of_attention_come_back_and_those_not_measured_stay_none():
    measured = AblationLosses(
        ce=3.0, ce_loss_score=0.5, kl=1.0, kl_score=0.5, top1_agreement=0.5, pattern_kl=0.8, pattern_kl_score=math.nan
    )
    bare = AblationLosses(ce=3.0, ce_loss_score=0.5, kl=math.nan, kl_score=0.5, top1_agreement=0.5)
    whole = report(
        relative_reconstruction_bias=1.0,
        pattern_kl=0.2,
        pattern_kl_ablated=0.8,
        pattern_kl_score=0.75,
        n_pattern_queries=90,
        pattern_kl_per_position={"spliced": torch.tensor([math.nan, 0.2])},
        ablation="zero",
        ablations={"zero": measured, "mean": bare},
        intervals={"pattern_kl": (0.1, 0.3), "ablations/mean/ce": (2.0, 4.0)},
    )
    again = Report.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert (again.pattern_kl, again.pattern_kl_ablated, again.pattern_kl_score) == (0.2, 0.8, 0.75)
    assert (again.n_pattern_queries, again.intervals["pattern_kl"]) == (90, (0.1, 0.3))
    assert again.ablations is not None
    assert (again.ablations["zero"].pattern_kl, again.ablations["zero"].pattern_kl_score) == (0.8, None)
    assert math.isnan(again.ablations["mean"].kl)
    assert again.ablations["mean"].pattern_kl is None
    assert whole.to_dict(per_latent=True)["pattern_kl_per_position"] == {"spliced": [None, pytest.approx(0.2)]}
    for text in (str(whole), str(again), whole._repr_html_()):
        assert "attention" in text
        assert "0.2000  [0.1000, 0.3000]" in text
        assert "None" not in text
    assert "attention" not in str(report())
    old = {key: value for key, value in whole.to_dict().items() if "pattern" not in key}
    old["ablations"] = {"mean": {key: each for key, each in old["ablations"]["mean"].items() if "pattern" not in key}}
    assert Report.from_dict(old).pattern_kl is None, "a report written before these figures"


def test_html_escapes_what_it_shows():
    page = report(model_name="<script>", notes=("a < b",), split="x<y")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &lt; b" in page
    assert "x&lt;y" in page


def test_reports_are_frozen_and_compare_without_their_tensor():
    with pytest.raises(FrozenInstanceError):
        report().fve = 1.0  # type: ignore[misc]
    assert report(relative_reconstruction_bias=1.0) == report(
        relative_reconstruction_bias=1.0, firing_density=torch.zeros(2)
    )


def test_every_number_shown_is_a_field():
    names = {field.name for field in fields(Report)}
    assert all(name in names for group in shown_in_groups(Report).values() for name in group)
    assert [*shown_in_groups(Report)] == list(GROUPS)


def test_losses_of_a_model_may_be_older_than_a_figure_but_not_damaged(tmp_path):
    losses = dict.fromkeys(figures_of(PredictionFigures), 1.0) | {"n_predicted_tokens": 3, "ablations": {}}
    whole = report().to_dict() | {"models": {"chat": losses}}
    assert Report.from_dict(whole).models["chat"].kl == 1.0
    assert math.isnan(Report.from_dict(whole | {"models": {"chat": losses | {"kl": None}}}).models["chat"].kl)
    (tmp_path / "report.json").write_text(
        json.dumps(whole | {"models": {"chat": {name: each for name, each in losses.items() if name != "kl"}}})
    )
    assert math.isnan(Report.load(tmp_path / "report.json").models["chat"].kl)
    (tmp_path / "report.json").write_text(
        json.dumps(whole | {"models": {"chat": losses | {"n_predicted_tokens": None}}})
    )
    with pytest.raises(FileError, match="n_predicted_tokens"):
        Report.load(tmp_path / "report.json")
    with pytest.raises(TypeError, match="kl missing; only figures of attention patterns may be None"):
        ModelLosses(**{name: each for name, each in losses.items() if name != "kl"}, intervals={})
    with pytest.raises(FileError, match="ce_clean"):
        Report.from_dict(whole | {"ce_clean": "much"})
    with pytest.raises(FileError, match="ce_clean"):
        made_of(ModelLosses, losses | {"ce_clean": "much", "intervals": {}}, "a file")
