"""What is logged reaches every subscriber: just the lines of metrics.jsonl, held-out figures among them."""

from __future__ import annotations

import json

import torch

import monosema as ms
from monosema.data import ArrayRows

D, BATCH, STEPS = 8, 20, 8
ROWS = torch.randn(300, D, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    D, D, generator=torch.Generator().manual_seed(1)
)
CONFIG = ms.TrainingConfig(tokens=BATCH * STEPS, lr=0.01, log_every=2, eval_every=4)


class Heard:
    def __init__(self) -> None:
        self.lines: list = []

    def log(self, step, figures):
        self.lines.append({"step": step, **figures})


def coder() -> ms.SparseCoder:
    return ms.SAE(D, 16, activation=ms.BatchTopK(k=3))


def source() -> ArrayRows:
    return ArrayRows(ROWS, BATCH, validation_fraction=0.2)


def test_a_subscriber_sees_the_lines_of_the_folder(tmp_path):
    heard = Heard()
    ms.train(coder(), source(), CONFIG, out=tmp_path / "run", progress=False, evaluation=False, subscribers=[heard])
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert json.loads(json.dumps(heard.lines)) == written
    assert [(line["step"], "heldout/fve" in line) for line in written] == [
        (2, False),
        (4, True),
        (4, False),
        (6, False),
        (8, True),
        (8, False),
    ]


def test_held_out_figures_are_measured_without_a_folder_where_somebody_listens(monkeypatch):
    from monosema.runs import figure_log

    calls, measure = [], figure_log.measure
    monkeypatch.setattr(figure_log, "measure", lambda *a, **o: calls.append(1) or measure(*a, **o))
    heard = Heard()
    result = ms.train(coder(), source(), CONFIG, progress=False, evaluation=False, subscribers=[heard])
    assert [line["step"] for line in heard.lines if "heldout/l0" in line] == [4, 8]
    assert result.metrics == next(line for line in reversed(heard.lines) if "loss" in line)
    assert len(calls) == 2
    alone = ms.train(coder(), source(), CONFIG, progress=False, evaluation=False)
    assert len(calls) == 2
    for name, value in result.coder.state_dict().items():
        assert torch.equal(value, alone.coder.state_dict()[name]), "logging changes no weight"


def test_of_several_coders_each_figure_is_named(tmp_path):
    heard = Heard()
    ms.train({"a": coder(), "b": coder()}, source(), CONFIG, progress=False, evaluation=False, subscribers=[heard])
    names = {name for line in heard.lines for name in line} - {"step"}
    assert {name.split("/")[0] for name in names} == {"a", "b"}
    assert {"a/loss", "b/heldout/fve"} <= names
