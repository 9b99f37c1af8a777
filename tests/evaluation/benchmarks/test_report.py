"""What all reports share: text, HTML, and JSON that is read back as it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_cases import REPORTS

from monosema.core.errors import FileError
from monosema.evaluation.benchmarks import BenchmarkReport, GroundTruthReport, PerturbationReport
from monosema.evaluation.benchmarks.report import BenchmarkReport as Base

PERTURBATION = REPORTS["tpp"]


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_every_report_is_read_back_as_it_was(report: BenchmarkReport, tmp_path: Path) -> None:
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert list(plain)[:2] == ["benchmark", "version"]
    assert type(report).from_dict(plain).to_dict() == plain
    report.save(tmp_path / "report.json")
    assert type(report).load(tmp_path / "report.json").to_dict() == plain
    assert "seed" in str(plain["config"])
    for name in report.notes:
        assert name in str(report)


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_every_report_is_text_and_html(report: BenchmarkReport) -> None:
    text, html = str(report), report._repr_html_()
    assert len(text.splitlines()) > 2
    assert max(map(len, text.splitlines())) < 200
    assert html.count("<table>") == html.count("</table>") >= 1
    assert text.splitlines()[0] in html


def test_nan_and_what_is_there_for_each_latent_come_back(tmp_path: Path) -> None:
    report = REPORTS["truth"]
    assert isinstance(report, GroundTruthReport)
    assert "features" not in report.to_dict()
    again = GroundTruthReport.from_dict(json.loads(json.dumps(report.to_dict(per_latent=True))))
    assert again.features is not None and report.features is not None
    torch.testing.assert_close(again.features.magnitude_ratio, report.features.magnitude_ratio, equal_nan=True)
    assert torch.equal(again.features.latent, report.features.latent)
    undefined = replace(report, uniqueness=math.nan)
    assert undefined.to_dict()["uniqueness"] is None
    assert math.isnan(GroundTruthReport.from_dict(undefined.to_dict()).uniqueness)


def test_html_shows_names_as_they_are() -> None:
    report = replace(PERTURBATION, hook_name="<b>", notes=("a < b",))
    assert "&lt;b&gt;" in report._repr_html_() and "<b>" not in report._repr_html_()
    assert "a &lt; b" in report._repr_html_()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "scr"}, "expected a report of the benchmark 'tpp' in version 1, got 'scr'"),
        ({"version": 2}, "in version 2"),
        ({"n_train": "many"}, "damaged: PerturbationReport.n_train holds many"),
        ({"n_train": True}, "n_train holds True"),
        ({"scores": [{}]}, r"scores\[0\] has no n_latents"),
        ({"scores": 1}, "scores holds 1"),
        ({"config": {"n_latents": []}}, "damaged: n_latents must be"),
    ],
)
def test_a_damaged_report_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    plain = {**PERTURBATION.to_dict(), **change}
    with pytest.raises(FileError, match=message):
        PerturbationReport.from_dict(plain)
    (tmp_path / "report.json").write_text(json.dumps(plain))
    with pytest.raises(FileError, match=r"report\.json"):
        PerturbationReport.load(tmp_path / "report.json")


def test_a_report_without_a_field_is_refused_and_another_file_is_none(tmp_path: Path) -> None:
    plain = PERTURBATION.to_dict()
    del plain["scores"]
    with pytest.raises(FileError, match="PerturbationReport has no scores"):
        PerturbationReport.from_dict(plain)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(FileError, match="got None"):
        PerturbationReport.load(tmp_path / "list.json")


def test_every_benchmark_has_a_name_of_its_own() -> None:
    names = [each.benchmark for each in Base.__subclasses__()]
    assert sorted(names) == sorted({*names}) == sorted(REPORTS)
