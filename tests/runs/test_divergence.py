"""A run that explains less than nothing says so, with the likely cause."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import monosema as ms
from monosema.runs.divergence import DivergenceWarning, explains_nothing
from monosema.training import Trainer
from monosema.training.schedules import automatic_lr

X = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))


def trainer(**options: Any) -> Trainer:
    return Trainer(ms.SAE(4, 8, activation=ms.BatchTopK(k=2)), ms.TrainingConfig(tokens=2000, **options), 100)


@pytest.mark.parametrize("fve", [None, math.nan, 0.0, 0.3])
def test_what_explains_something_or_is_not_defined_has_no_message(fve: float | None) -> None:
    assert explains_nothing(trainer(), fve) is None


def test_the_message_names_the_likely_cause() -> None:
    usual = automatic_lr(8, 100, 20)
    large = explains_nothing(trainer(lr=10 * usual), -4844.0)
    assert large is not None and large.startswith("FVE is -4,844, so predictions are worse than the mean")
    assert f"10 times what lr='auto' gives ({usual:.2g}): lower it" in large
    scale = explains_nothing(trainer(input_scaling="none"), -1.0)
    assert scale is not None and "input_scaling='none'" in scale and "lower" not in scale
    neither = explains_nothing(trainer(), -1.0)
    assert neither is not None and "lower lr (now" in neither and "outliers" in neither


@pytest.mark.parametrize(("steps", "n_warnings"), [((1, 2), 0), ((3, 4, 19), 1), ((20,), 0)])
def test_the_log_says_so_once_after_the_beginning(
    steps: tuple[int, ...], n_warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    callback, own = DivergenceWarning("k2"), trainer()
    with caplog.at_level(logging.WARNING, logger="monosema.runs"):
        for step in steps:
            own.step_number = step
            callback.on_log(own, {"fve": -3.0})
    assert len(caplog.records) == n_warnings
    assert all("k2: step 3 of 20: FVE is -3" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("lr", "is_bad"), [(50.0, True), ("auto", False)])
def test_a_run_at_a_large_learning_rate_says_so_at_its_end(
    lr: Any, is_bad: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coder = ms.SAE(4, 8, activation=ms.BatchTopK(k=2))
    config = ms.TrainingConfig(tokens=2000, lr=lr, log_every=5)
    with caplog.at_level(logging.WARNING, logger="monosema.runs"):
        result = ms.train(coder, X, config, out=tmp_path / "run", progress=False, batch_size=100, epochs=2)
    messages = [record.getMessage() for record in caplog.records if "worse than the mean" in record.getMessage()]
    assert bool(messages) == is_bad == (result.summary.warning is not None)
    assert (result.summary.training["fve"] < 0) == is_bad
    if result.summary.warning is not None:
        assert messages[-1] == result.summary.warning
        assert "lower it" in messages[-1]
        assert result.summary.warning in (tmp_path / "run" / "summary.txt").read_text()
