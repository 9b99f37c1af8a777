"""The figures of a step, by hand; and every name a trainer logs stands in the documentation."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import BATCH, D, F, batches, make_trainer

from monosema.coders import CLT, SAE, BatchTopK, Crosscoder, JumpReLU, ReLU, Transcoder
from monosema.training import L0, L1, AuxK, Trainer, TrainingConfig
from monosema.training.figures import StepRecord, reconstruction_figures, step_figures
from monosema.training.terms import (
    GhostGradients,
    Lp,
    Matryoshka,
    PreActivationLoss,
    QuadraticL0,
    RatioL0,
    Resample,
    SparseConnection,
    Tanh,
)

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> set[str]:
    """Names in the first column of the training log's table; numbers of sites and layers are N."""
    rows = re.findall(r"^\| (`[^|]+) \|", METRICS.read_text(encoding="utf-8").split("## The training log")[1], re.M)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_reconstruction_figures_by_hand():
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])  # norms 5 and 1
    y = torch.tensor([[4.0, 0.0], [0.0, 2.0]])  # mean (2, 1): each token lies √5 from it
    e = torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # predictions (3, 0) and (0, 3)
    figures = reconstruction_figures(x, y, e, (1, 1))
    assert figures == pytest.approx(
        {
            "fve": 1 - 2 / 10,
            "fve_per_token_mean": 1 - 1 / 5,
            "fve_per_token_std": 0.0,
            "norm_input": 3.0,
            "norm": 3.0,
            "norm_reconstruction": 3.0,
            "norm_ratio": (3 / 4 + 3 / 2) / 2,
            "fve/site_0": 1 - 1 / 8,
            "fve/site_1": 1 - 1 / 2,
        }
    )
    e = torch.tensor([[1.0, 0.0], [0.0, -2.0]])  # tokens explained 1 - 1/5 and 1 - 4/5
    figures = reconstruction_figures(x, y, e, (2,))
    assert figures["fve"] == pytest.approx(0.5)
    assert figures["fve_per_token_mean"] == pytest.approx(0.5)
    assert figures["fve_per_token_std"] == pytest.approx(0.3 * math.sqrt(2))
    assert math.isnan(reconstruction_figures(x[:1], y[:1], e[:1], (2,))["fve"])


def test_step_figures_by_hand():
    x = torch.zeros(2, 2)
    terms = {"mse": torch.tensor(1.5), "l1": torch.tensor(0.5)}
    values = step_figures(StepRecord(x, x, x, terms, torch.tensor(4.0), 2, torch.tensor(7), 0.01, 0.125), (2,))
    assert (values["loss"], values["loss/mse"], values["loss/l1"]) == (2.0, 1.5, 0.5)
    assert (values["l0"], values["lr"], values["penalty"], values["sparsity_coefficient"]) == (3.5, 0.01, 4.0, 0.125)


def test_the_l1_penalty_is_logged_without_its_coefficient():
    trainer = make_trainer("ReLU", sparsity=L1(coefficient=0.3, warmup_fraction=0.0), input_scaling="none")
    x = batches(1)[0]
    f, norms = trainer.coder.encode(x).detach(), trainer.coder.W_dec.detach().norm(dim=1)
    trainer.step(x)
    metrics = trainer.metrics()
    assert metrics["penalty"] == pytest.approx(float((f * norms).sum()) / BATCH, rel=1e-12)
    assert metrics["loss/l1"] == pytest.approx(0.3 * metrics["penalty"], rel=1e-12)
    assert metrics["auxk_coefficient"] == 1 / 32


def test_a_transcoder_logs_the_norm_of_what_it_reads():
    rows = batches(1, width=11)[0]
    trainer = Trainer(Transcoder(6, 5, F, dtype="float64"), TrainingConfig(tokens=160, input_scaling="none"), BATCH)
    trainer.step(rows)
    metrics = trainer.metrics()
    assert metrics["norm_input"] == pytest.approx(float(rows[:, :6].norm(dim=1).mean()))
    assert metrics["norm"] == pytest.approx(float(rows[:, 6:].norm(dim=1).mean()))


def trainers() -> dict[str, Trainer]:
    def sae(**options: Any) -> Trainer:
        return make_trainer(options.pop("name", "ReLU"), **options)

    def other(coder: Any, **options: Any) -> Trainer:
        return Trainer(coder, TrainingConfig(tokens=10 * BATCH, **options), BATCH)

    dead = {"dead_after_tokens": 1}
    made = {name: sae(name=name) for name in ("TopK", "AbsTopK", "BatchTopK", "JumpReLU", "Gated", "TanhReLU")}
    for sparsity in (L1(), Lp(p_end=0.5), Tanh(), L0(), QuadraticL0(), RatioL0()):
        made[type(sparsity).__name__] = sae(sparsity=sparsity)
    for policy in (AuxK(**dead), GhostGradients(**dead), PreActivationLoss(**dead), Resample(every_tokens=BATCH)):
        made[type(policy).__name__] = sae(name="TopK", revive=policy)
    made["k annealing"] = sae(name="TopK", k_start=6)
    made["levels"] = sae(name="TopK", levels=Matryoshka(widths=(4,)))
    made["crosscoder"] = other(Crosscoder((4, 4), F, activation=ReLU()))
    made["stack"] = other(CLT((4, 4), (4, 4), F, activation=BatchTopK(k=2)))
    made["stack with learned thresholds"] = other(CLT((4, 4), (4, 4), F, activation=JumpReLU()))
    connected = TrainingConfig(tokens=BATCH, sparse_connection=SparseConnection(path="an SAE"))
    made["connection"] = Trainer(SAE(D, F), connected, BATCH, torch.randn(3, D))
    return made


def test_every_name_a_trainer_logs_is_documented():
    logged: set[str] = set()
    for name, trainer in trainers().items():
        stack = name.startswith("stack")
        for batch in batches(1, width=16 if stack else D) * 3:
            if trainer.step_number < trainer.n_steps:
                trainer.step(batch)
                logged |= set(trainer.metrics())
    assert {"fve/site_1", "threshold/layers.1", "loss/ghost", "loss/gate_mse", "n_resampled", "p", "k"} <= logged
    logged = {re.sub(r"(site_|layers\.)\d+", r"\1N", name) for name in logged}
    assert logged - documented() == set()
    # and nothing is documented that nothing logs: the rest is written by a run
    rest = documented() - logged
    assert {name for name in rest if not name.startswith("heldout/")} == {"step", "n_outlier_rows"}
