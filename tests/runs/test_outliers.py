"""Training with rows of outlying norm: left out, counted, recorded; never a folder that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from torch import Tensor

import monosema as ms
from monosema.core.errors import DataError
from monosema.data import ArrayRows
from monosema.runs.checksums import Checksums
from monosema.runs.describe import describe

CONFIG = ms.TrainingConfig(tokens=1280, log_every=5, checkpoint_every=5, input_scaling="none")


def rows(n: int = 1600, size: float = 1000.0) -> Tensor:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    x[::50] *= size
    return x


def sae() -> ms.SparseCoder:
    return ms.SAE(6, 12, activation=ms.TopK(k=2), seed=1)


def train(x: Tensor, **options):
    given = {"batch_size": 64, "validation_fraction": 0.2, "progress": False, **options}
    return ms.train(sae(), x, CONFIG, **given)


def test_they_are_left_out_counted_recorded_and_reported(tmp_path):
    out = tmp_path / "run"
    result = train(rows(), out=out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    n = [line["n_outlier_rows"] for line in lines]
    assert n == sorted(n) and 0 < n[-1] < 40 and result.metrics["n_outlier_rows"] == n[-1]
    multiple, (site,) = (ms.load(out).metadata[name] for name in ("outlier_norm_multiple", "median_norms"))
    assert multiple == 10 and site[:2] == ["input", 6] and 2 < site[2] < 2.6  # the median norm of 6 normals is 2.31
    report = result.report
    assert report is not None and report.outlier_norm_multiple == 10
    assert report.n_outlier_rows is not None and report.n_tokens + report.n_outlier_rows == 320
    assert report.fve_all_rows is not None and abs(report.fve_all_rows - report.fve) > 0.01
    assert any("norm above 10 times the median" in note for note in report.notes)
    assert ms.Report.load(out / "report.json").fve_all_rows == report.fve_all_rows
    assert f"{n[-1]} rows" in (out / "summary.txt").read_text()
    described = describe(out)
    assert "10 times the median norm" in described and f"{n[-1]} of 1,280 training rows" in described
    assert "fve_all_rows" in described


def test_training_is_that_on_the_rows_that_are_served():
    source = ArrayRows(rows(), 64, validation_fraction=0.2)
    served = torch.cat(list(source))
    config = replace(CONFIG, b_dec_init="zeros")  # the first rows alone would be filled up in another order
    alone = ms.train(sae(), [served], config, batch_size=64, progress=False, outlier_norm_multiple=None)
    together = ms.train(sae(), rows(), config, batch_size=64, validation_fraction=0.2, progress=False)
    assert torch.equal(alone.coder.W_dec, together.coder.W_dec)


def test_without_outliers_nothing_changes_but_what_is_recorded():
    x = rows(size=1.0)
    default, off = train(x), train(x, outlier_norm_multiple=None)
    assert torch.equal(default.coder.W_enc, off.coder.W_enc)
    assert default.report is not None and off.report is not None
    assert (default.report.fve, default.report.n_outlier_rows, default.report.fve_all_rows) == (off.report.fve, 0, None)
    assert off.report.n_outlier_rows is None and off.coder.metadata["outlier_norm_multiple"] is None
    assert "n_outlier_rows" not in off.metrics


class StopError(Exception):
    """Raised inside a run."""


def stop_at(step: int):
    def stop(trainer: ms.Trainer) -> None:
        if trainer.step_number == step:
            raise StopError

    return stop


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    whole = train(rows(), out=tmp_path / "whole")
    with pytest.raises(StopError):
        train(rows(), out=tmp_path / "run", on_step=stop_at(13))
    resumed = train(rows(), out=tmp_path / "run")
    assert resumed.resumed_from == 10
    assert torch.equal(resumed.coder.W_enc, whole.coder.W_enc)
    assert resumed.metrics == whole.metrics
    assert resumed.coder.metadata["median_norms"] == whole.coder.metadata["median_norms"]
    again = train(rows(), out=tmp_path / "run")  # finished: read back
    assert again.coder.metadata["median_norms"] == whole.coder.metadata["median_norms"]


def test_a_run_of_an_older_version_goes_on_as_it_was_begun(tmp_path, caplog):
    out = tmp_path / "run"
    whole = train(rows(), out=tmp_path / "whole", outlier_norm_multiple=None)
    with pytest.raises(StopError):
        train(rows(), out=out, on_step=stop_at(13), outlier_norm_multiple=None)
    config = yaml.safe_load((out / "config.yaml").read_text())
    del config["rows"]["outlier_norm_multiple"]
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    Checksums(out).record_written("config.yaml")
    resumed = train(rows(), out=out)
    assert "begun without outlier_norm_multiple" in caplog.text
    assert resumed.resumed_from == 10 and torch.equal(resumed.coder.W_enc, whole.coder.W_enc)


def test_a_row_of_1e30_is_left_out_or_stops_the_run_and_every_folder_can_be_read(tmp_path):
    x = torch.randn(1600, 6, generator=torch.Generator().manual_seed(0))
    x[200, 3] = 1e30
    config = ms.TrainingConfig(tokens=1280, checkpoint_every=5)
    result = ms.train(sae(), x, config, batch_size=64, out=tmp_path / "run", progress=False)
    assert all(bool(torch.isfinite(each).all()) for each in ms.load(tmp_path / "run").parameters())
    assert result.metrics["n_outlier_rows"] == 1
    off = tmp_path / "off"
    with pytest.raises(ms.UserError, match=r"outlier_norm_multiple|near row"):
        ms.train(sae(), x, config, batch_size=64, out=off, progress=False, outlier_norm_multiple=None)
    for folder in (off, *off.glob("checkpoints/step_*")):
        if (folder / "coder").exists():
            ms.load(folder / "coder")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, value):
    coder = sae()
    ms.save(coder, tmp_path / "coder")
    with torch.no_grad():
        coder.W_dec[3, 2] = value
    for folder in (tmp_path / "coder", tmp_path / "other"):
        with pytest.raises(DataError, match=r"W_dec holds values that are not finite, so nothing was saved"):
            ms.save(coder, folder)
    assert not (tmp_path / "other").exists()
    ms.load(tmp_path / "coder")  # as it was
