"""Reports beside each other, in text and CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from evaluation_tiny import identity_sae, random_sae
from torch import Tensor

from monosema.evaluation import evaluate_many
from monosema.evaluation.comparison import comparison, write_csv
from monosema.models import LanguageModel


def test_a_line_for_each_with_its_figures(decoder: LanguageModel, contexts: Tensor):
    reports = evaluate_many({"random": random_sae(), "exact": identity_sae()}, decoder, contexts)
    head, random, exact = comparison(reports).splitlines()
    assert head.split()[:4] == ["d_sae", "l0", "fve", "ce_loss_score"]
    assert random.split()[:2] == ["random", "24"]
    assert exact.split()[:5] == ["exact", "32", "16.0000", "1.0000", "1.0000"]


def test_csv_has_every_figure_and_the_ends_of_intervals(decoder: LanguageModel, contexts: Tensor, tmp_path: Path):
    reports = evaluate_many({"random": random_sae(), "exact, or so": identity_sae()}, decoder, contexts)
    reports["rows"] = evaluate_many({"": random_sae()}, decoder, contexts, losses=False)[""]
    write_csv(reports, tmp_path / "figures.csv")
    with open(tmp_path / "figures.csv", newline="") as file:
        lines = {line["name"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["random", "exact, or so", "rows"]
    for name, report in reports.items():
        for key in ("fve", "l0", "dead_fraction", "max_decoder_cosine"):
            assert float(lines[name][key]) == getattr(report, key)
        low, high = report.intervals["fve"]
        assert (float(lines[name]["fve low"]), float(lines[name]["fve high"])) == (low, high)
    assert float(lines["random"]["ablations/mean/ce"]) == reports["random"].ablations["mean"].ce
    assert (lines["rows"]["ce_clean"], lines["rows"]["kl high"]) == ("", "")


def test_a_line_for_each_latent(decoder: LanguageModel, contexts: Tensor, tmp_path: Path):
    table = evaluate_many({"": random_sae()}, decoder, contexts)[""].latents
    assert table is not None
    table.write_csv(tmp_path / "latents.csv")
    with open(tmp_path / "latents.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["index"]) for line in lines] == list(range(24))
    assert [float(line["density"]) for line in lines] == pytest.approx(table.density.tolist())
    assert [line["mean_activation"] == "" for line in lines] == (table.density == 0).tolist()
