"""Figures by name, why one is missing, and what can be compared."""

from __future__ import annotations

import math

import pytest
from page_reports import losses, model_losses, report

from monosema.evaluation.page.rows import Row, grounds, rows_of, short_names


def only(of_report) -> Row:
    (row,) = rows_of({"a": of_report})
    return row


def test_figures_and_intervals_are_the_reports():
    row = only(report(16, 0.8, 0.9))
    assert (row.value("fve"), row.value("d_sae"), row.value("ce_spliced")) == (0.8, 40, 2.5)
    assert row.value("ablations/mean/ce_loss_score") == pytest.approx(0.85)
    assert row.interval("l0") == (15, 17)
    assert row.interval("ablations/mean/ce_loss_score") == pytest.approx((0.84, 0.86))
    assert row.interval("mse") is None
    assert only(report(intervals={"fve": (math.nan, 0.9)})).interval("fve") is None


def test_a_report_of_one_ablation_without_a_list_has_its_flat_figures():
    row = only(report(score=0.9, ablations=None, ablation="mean"))
    assert row.value("ablations/mean/ce_loss_score") == 0.9
    assert row.value("ablations/mean/ce") == 7.0
    assert row.value("ablations/zero/ce_loss_score") is None
    assert row.reason("ablations/zero/ce_loss_score") == "the zero ablation was not run"


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"score": None}, "kl", "predictions were not compared"),
        ({"score": None}, "ablations/zero/ce", "predictions were not compared"),
        ({"fve": math.nan}, "fve", "not defined"),
        ({"norm_ratio": math.inf}, "norm_ratio", "not defined"),
        ({"ce_loss_score": None, "ablations": None}, "ablations/zero/ce_loss_score", "not defined"),
        ({"encoder_decoder_cosine": math.nan}, "encoder_decoder_cosine", "that write the site they read"),
        ({"encoder_decoder_cosine": None}, "encoder_decoder_cosine", "that write the site they read"),
        ({"encoder_decoder_cosine": None, "max_decoder_cosine": None}, "encoder_decoder_cosine", "were not looked at"),
    ],
)
def test_what_is_missing_has_a_reason(changes: dict, key: str, reason: str):
    row = only(report(**changes))
    value = row.value(key)
    assert value is None or math.isnan(value)
    assert reason in row.reason(key)


def test_a_dictionary_over_models_has_a_row_for_each():
    models = {"base": model_losses(0.7), "chat": model_losses(0.6)}
    first, second = rows_of({"a": report(score=None, model_name="base: x, chat: y", models=models)})
    assert (first.model, second.model) == ("base", "chat")
    assert (first.value("fve"), second.value("fve")) == (0.8, 0.8)
    assert (first.value("ce_loss_score"), second.value("ce_loss_score")) == (0.7, 0.6)
    assert second.interval("ce_loss_score") == losses(0.6)["intervals"]["ce_loss_score"]
    assert first.ground(of_losses=False) == second.ground(of_losses=False)
    assert first.ground(of_losses=True) != second.ground(of_losses=True)
    assert len(grounds([first, second])) == 3


def test_tokens_that_were_not_recorded_are_the_same_where_as_many():
    known = [only(report(tokens_fingerprint=None, n_tokens=n)).ground(of_losses=False) for n in (1000, 1000, 2000)]
    assert known[0] == known[1] != known[2]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/sweep/k8", "runs/sweep/k16"], ["k8", "k16"]),
        (["runs/1/coder", "runs/2/coder/"], ["1/coder", "2/coder"]),
        (["/a/b", "/a/b/c"], ["b", "b/c"]),
        (["runs/one"], ["runs/one"]),
        (["k8", "runs/k8"], ["k8", "runs/k8"]),
        (["", "a\u202eb"], ["dictionary", "a⟨U+202E⟩b"]),
        (["bad\udcff", "x"], ["bad⟨ED B3 BF⟩", "x"]),
    ],
)
def test_names_are_short_and_printable(names: list[str], short: list[str]):
    assert short_names(names) == short
