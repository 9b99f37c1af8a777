"""Where a run's time goes, by a clock that moves only when it is told to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import monosema as ms
from monosema.data import ArrayRows
from monosema.runs import figure_log as figure_log_module
from monosema.runs import training as training_module
from monosema.runs.clock import PARTS, Clock, TimedBatches, Usage, times_of
from monosema.training import Callback, Trainer


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def parts(**seconds: float) -> dict[str, float]:
    return {**dict.fromkeys(PARTS, 0.0), **seconds}


def trainer() -> Trainer:
    return Trainer(ms.SAE(4, 8, activation=ms.BatchTopK(k=2)), ms.TrainingConfig(tokens=10), 10)


def test_every_moment_belongs_to_one_part() -> None:
    time = FakeTime()
    clock = Clock(time)
    time.now += 1
    with clock.part("steps"):
        time.now += 2
        with clock.part("collecting"):
            time.now += 4
        time.now += 8
        with contextlib.suppress(KeyError), clock.part("saving"):
            time.now += 16
            raise KeyError
    time.now += 32
    assert clock.read() == parts(other=33, steps=10, collecting=4, saving=16)
    assert sum(clock.read().values()) == time.now - 100


def test_waiting_for_a_batch_is_collecting() -> None:
    time = FakeTime()
    clock = Clock(time)

    class Slow:
        def __next__(self) -> Tensor:
            time.now += 3
            return torch.zeros(1)

    with clock.part("steps"):
        next(TimedBatches(Slow(), clock))
        time.now += 1
    assert clock.read() == parts(collecting=3, steps=1)


def test_usage_goes_on_from_earlier_calls_and_what_is_unknown_stays_so() -> None:
    time = FakeTime()
    clock = Clock(time)
    time.now += 5
    first = Usage(clock, parts(steps=100))
    first.start(from_the_beginning=True)
    joins, unknown, later = Usage(clock, parts()), Usage(clock, None), Usage(clock, parts())
    with clock.part("steps"):
        time.now += 1
        joins.on_step(trainer())
        unknown.on_step(trainer())
        time.now += 2
    first.stop()
    joins.stop()
    time.now += 50
    assert first.times == parts(steps=103, other=5)
    assert joins.times == parts(steps=2), "from the end of its first step"
    assert unknown.times is None and later.times == parts()
    with first.measuring("evaluation"):
        time.now += 7
    assert first.times == parts(steps=103, other=5, evaluation=7)


@pytest.mark.parametrize(
    "plain",
    [None, {}, {"seconds": 3.0}, {"times": 3}, {"times": {"steps": 1.0}}, {"times": parts(steps=True)}, {"times": []}],
)
def test_times_that_are_not_there_are_unknown(plain: Any) -> None:
    assert times_of(plain) is None
    assert times_of({"times": parts(steps=1)}) == parts(steps=1)


class Work(Callback):
    """Each step takes a second."""

    def __init__(self, time: FakeTime):
        self.time = time

    def on_step(self, trainer: Trainer) -> None:
        self.time.now += 1


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Collecting takes 100 s at first and 10 s a batch, an evaluation 1,000 s, writing the dictionary 10,000 s."""
    time = FakeTime()

    def slow(owner: Any, name: str, seconds: float) -> None:
        function = getattr(owner, name)

        def slowed(*values: Any, **options: Any) -> Any:
            time.now += seconds
            return function(*values, **options)

        monkeypatch.setattr(owner, name, slowed)

    monkeypatch.setattr(training_module, "Clock", lambda: Clock(time))
    slow(ArrayRows, "preview", 100)
    slow(ArrayRows, "__next__", 10)
    slow(training_module, "measure", 1_000)
    slow(figure_log_module, "measure", 1_000)
    slow(training_module, "save_coder", 10_000)
    return time


def test_a_run_tells_the_whole_and_its_parts(time: FakeTime, tmp_path: Path) -> None:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    config = ms.TrainingConfig(tokens=400, eval_every=2, calibrate_threshold=False)

    def run() -> ms.TrainingResult:
        coder = ms.SAE(4, 8, activation=ms.BatchTopK(k=2))
        rows = ArrayRows(x, batch_size=100, validation_fraction=0.2)
        return ms.train(coder, rows, config, out=tmp_path / "run", progress=False, callbacks=[Work(time)])

    summary = run().summary
    # the first rows and four batches; four steps; after steps 2 and 4 and at the end; the dictionary
    assert summary.times == parts(collecting=140, steps=4, evaluation=3_000, saving=10_000)
    assert summary.seconds == 13_144
    assert summary.tokens_per_second == 400 / 144
    again = run()
    assert again.summary == summary, "reading a finished run takes no time of it"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["times"] == summary.times
