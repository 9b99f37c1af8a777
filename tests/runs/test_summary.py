"""The summary at the end of a run: its figures, its table, its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema.runs.summary import RunSummary, memory_line, summary_table
from monosema.training import Callback, Trainer

SITE = "blocks.1.hook_resid_post"
SUMMARY = RunSummary(
    name="k4",
    tokens=4_000,
    seconds=8.0,
    times={"collecting": 5.0, "steps": 1.5, "evaluation": 0.75, "saving": 0.5, "other": 0.25},
    tokens_per_second=500.0,
    peak_memory_bytes=3 * 2**29,
    d_sae=48,
    n_alive=45,
    n_dead=3,
    training={"loss": 1.25, "fve": 0.75, "l0": 4.0},
    report={"fve": 0.7, "l0": 3.9, "ce_loss_score": 0.8125, "kl": 0.0625},
    folder="runs/k4",
    error=None,
)


def sae(k: int = 4) -> ms.SparseCoder:
    return ms.SAE(d_in=16, d_sae=48, activation=ms.BatchTopK(k=k))


def cells(table: str) -> list[list[str]]:
    """Columns are two spaces apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]


def test_the_table_has_a_row_for_each_run() -> None:
    long = replace(
        SUMMARY, name="k32", seconds=3_900.0, times=None, tokens_per_second=None, report=None, folder=None, error="bad"
    )
    long = replace(long, warning="FVE is -2")
    header, first, second, note, warning = cells(summary_table([SUMMARY, long]))
    row = dict(zip(header, first, strict=True))
    assert row == {
        "run": "k4",
        "tokens": "4,000",
        "time": "8.0 s",
        "collect": "5.0 s",
        "steps": "1.5 s",
        "evaluate": "0.8 s",
        "save": "0.5 s",
        "tok/s": "500",
        "peak": "1.5 GiB",
        "loss": "1.25",
        "FVE": "0.75",
        "L0": "4",
        "alive": "45",
        "dead": "3",
        "held-out FVE": "0.7",
        "held-out L0": "3.9",
        "CE score": "0.8125",
        "KL": "0.0625",
        "folder": "runs/k4",
    }
    row = dict(zip(header, second, strict=True))
    assert (row["time"], row["tok/s"], row["held-out FVE"], row["folder"]) == ("1 h 05 min", "-", "-", "-")
    assert [row[head] for head in ("collect", "steps", "evaluate", "save")] == ["-"] * 4
    assert note == ["k32 stopped early: bad"]
    assert warning == ["k32: FVE is -2"]


def test_columns_stand_below_each_other() -> None:
    lines = summary_table([SUMMARY, replace(SUMMARY, name="a longer name", tokens=12_000_000)]).splitlines()
    assert len({line.index("runs/k4") for line in lines[1:]} | {lines[0].index("folder")}) == 1


def test_a_run_shows_and_keeps_its_summary(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("monosema.runs.training.say", shown.append)  # stderr or a logger, whatever ran before
    config = ms.TrainingConfig(tokens=2000, log_every=5)

    def run(**options: object) -> ms.TrainingResult:
        stream = ms.ActivationStream(model, tokens, SITE, batch_size=100)
        return ms.train(sae(), stream, config, out=tmp_path / "run", **options)

    result = run()
    summary = result.summary
    memory = ms.Trainer(sae(), config, 100).memory()
    assert shown == [memory_line([memory], has_folders=True), summary_table([summary])]
    assert (tmp_path / "run" / "summary.txt").read_text() == shown[1] + "\n"
    assert summary.peak_memory_bytes is None or summary.peak_memory_bytes > memory.weights
    assert (summary.name, summary.tokens, summary.d_sae, summary.folder) == ("run", 2000, 48, str(tmp_path / "run"))
    assert summary.n_dead == result.metrics["n_dead"] == 48 - summary.n_alive
    assert summary.training == result.metrics
    assert result.report is not None
    assert summary.report == result.report.to_dict()
    assert summary.times is not None and summary.warning is None
    assert summary.seconds == pytest.approx(sum(summary.times.values()))
    assert summary.tokens_per_second == pytest.approx(2000 / (summary.times["collecting"] + summary.times["steps"]))
    assert summary.times["evaluation"] > 0, "that of the end, after the last checkpoint"
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary.to_dict()

    again = run(evaluation=False, progress=False)  # read, neither trained nor evaluated: the same summary
    assert again.summary == summary
    assert again.report is None
    assert len(shown) == 2


class StopAt(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.step_number == 10:
            raise RuntimeError("crash")


def test_time_adds_up_over_calls(tmp_path: Path) -> None:
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    config = ms.TrainingConfig(tokens=2000, checkpoint_every=4)
    options = {"out": tmp_path / "run", "evaluation": False, "progress": False, "batch_size": 100}
    with pytest.raises(RuntimeError, match="crash"):
        ms.train(sae(), rows, config, callbacks=[StopAt()], **options)
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_000000008" / "state.json").read_text())
    result = ms.train(sae(), rows, config, **options)
    assert result.resumed_from == 8
    assert result.summary.times is not None
    assert all(result.summary.times[part] >= seconds for part, seconds in state["times"].items())
    assert result.summary.times["steps"] > state["times"]["steps"] > 0


def test_several_coders_share_one_table(tmp_path: Path) -> None:
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    coders = {"k2": sae(2), "k8": sae(8)}
    config = ms.TrainingConfig(tokens=1000)
    results = ms.train(coders, rows, config, out=tmp_path / "s", progress=False, evaluation=False, batch_size=100)
    header, *lines = cells((tmp_path / "s" / "summary.txt").read_text())
    assert [line[header.index("run")] for line in lines] == ["k2", "k8"]
    assert [line[header.index("L0")] for line in lines] == ["2", "8"]
    for name in coders:
        assert json.loads((tmp_path / "s" / name / "summary.json").read_text()) == results[name].summary.to_dict()
