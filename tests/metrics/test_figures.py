"""The table of figures: rows are whole, and what reads it has just what it says."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields

import pytest

from monosema.evaluation.comparison import _SHOWN
from monosema.evaluation.page.tables import _GROUPS, COLUMNS
from monosema.evaluation.report import AblationLosses, ModelLosses, Report
from monosema.metrics.figure import GROUPS, Runs, shown_in_groups
from monosema.metrics.figures import BEST, FIGURES, OF_ABLATION, figure_named, names_needing
from monosema.runs.heldout import LOSS_FIGURES, ROW_FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_every_row_says_what_it_is(name: str):
    row = FIGURES[name]
    assert row.label
    assert row.formula
    assert row.group in (*GROUPS, "")
    assert name in {each.name for each in fields(Report)}
    if row.needs == "activations" and row.bounds is not None:
        assert row.of is not None
        assert row.left_out is not None, "it has an interval"


def test_every_figure_with_an_interval_has_a_range():
    bounded = {name for table in (FIGURES, OF_ABLATION) for name, row in table.items() if row.bounds is not None}
    names = [each.name for kind in (Report, ModelLosses, AblationLosses) for each in fields(kind)]
    assert bounded <= set(names)
    assert figure_named("ablations/zero/top1_agreement").bounds == (0.0, 1.0)
    assert figure_named("ce_loss_score").bounds == (-math.inf, math.inf)
    assert FIGURES["l0"].bounds_of(64) == (0.0, 64.0)
    assert FIGURES["mse"].bounds_of(64) == (0.0, math.inf)
    assert {name for name, row in OF_ABLATION.items() if row.flat and row.bounds != FIGURES[row.flat].bounds} == set()


def test_a_figure_of_runs_is_one_formula_or_that_of_the_first_ablation():
    flat = {row.flat for row in OF_ABLATION.values() if row.flat}
    for name in names_needing("predictions", "patterns"):
        is_counted = name.startswith("n_")
        assert is_counted or (FIGURES[name].of is None) == (name in flat), name


def test_formulas_of_runs_by_hand():
    runs = Runs(
        clean={"ce": 2.0, "kl": 0.0, "top1_agreement": 1.0},
        spliced={"ce": 2.5, "kl": 0.4, "top1_agreement": 0.75},
        ablated={"ce": 7.0, "kl": 4.0, "top1_agreement": 0.125},
    )
    flat = {name: row.of(runs) for name, row in FIGURES.items() if row.needs == "predictions" and row.of is not None}
    assert flat == {"ce_clean": 2.0, "ce_spliced": 2.5, "kl": 0.4, "top1_agreement": 0.75}
    ablated = {name: row.of(runs) for name, row in OF_ABLATION.items() if row.of is not None}
    assert ablated == {
        "ce": 7.0,
        "ce_loss_score": 4.5 / 5,
        "kl": 4.0,
        "kl_score": pytest.approx(0.9),
        "top1_agreement": 0.125,
        "pattern_kl": 4.0,
        "pattern_kl_score": pytest.approx(0.9),
    }


def test_what_is_logged_and_kept_as_the_best_is_the_tables():
    assert ROW_FIGURES == ("fve", "l0", "dead_fraction")
    assert LOSS_FIGURES == (
        "ce_clean",
        "ce_spliced",
        "ce_ablated",
        "ce_loss_score",
        "kl",
        "kl_score",
        "top1_agreement",
    )
    assert BEST == {
        "heldout/fve": "highest",
        "heldout/dead_fraction": "lowest",
        "heldout/ce_spliced": "lowest",
        "heldout/ce_loss_score": "highest",
        "heldout/kl": "lowest",
        "heldout/kl_score": "highest",
        "heldout/top1_agreement": "highest",
    }


def test_a_report_shows_its_figures_in_this_order():
    shown = shown_in_groups(Report)
    assert shown["reconstruction"][:3] == ("fve", "fve_all_rows", "fve_centred")
    assert shown["sparsity"] == (
        "l0",
        "l0_std",
        "l0_quantiles",
        "l1",
        "dead_fraction",
        "n_alive",
        "d_sae",
        "share_over_1_percent",
        "share_over_10_percent",
    )
    assert shown["language model"] == (
        "ce_loss_score",
        "ce_clean",
        "ce_spliced",
        "ce_ablated",
        "kl_score",
        "kl",
        "kl_ablated",
        "top1_agreement",
    )
    assert shown["data"][:4] == ("split", "n_tokens", "n_documents", "n_predicted_tokens")


def test_columns_are_those_of_the_table_and_lists_name_rows():
    rows = {name for name, row in FIGURES.items() if row.column is not None}
    rows |= {f"ablations/{a}/{name}" for name, row in OF_ABLATION.items() if row.column for a in ("zero", "mean")}
    assert {name for group in COLUMNS.values() for name, _, _ in group} == rows
    for table in (FIGURES, OF_ABLATION):
        assert {row.column.group for row in table.values() if row.column is not None} <= set(_GROUPS)
    assert [name for name, _, _ in COLUMNS["Predictions"]] == [
        "kl",
        "ablations/zero/kl_score",
        "ablations/mean/kl_score",
        "top1_agreement",
    ]
    assert COLUMNS["Cross-entropy, nats per token"][3] == (
        "ablations/mean/ce",
        "Mean",
        "with its mean in the site's place",
    )
    assert set(_SHOWN) <= set(FIGURES)


def test_the_table_loads_without_torch():
    code = "import sys; sys.modules['torch'] = None; from monosema.metrics.figures import FIGURES; print(len(FIGURES))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(FIGURES)
