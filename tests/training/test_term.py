"""A term from outside the package: one class with its config, and one field of the run's config."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
from training_tiny import BATCH, F, batches

from monosema.coders import CLT, SAE, Dictionary, LatentGradients, ReLU
from monosema.training import Matryoshka, Trainer, TrainingConfig
from monosema.training.gradients import GradientPass, StepState
from monosema.training.objectives import Objective
from monosema.training.revive import Dead
from monosema.training.term import Batch, OnBatch, OnPart, TermContext
from monosema.training.terms import TermConfig

D = 8


@dataclass(frozen=True, kw_only=True)
class Fourth(TermConfig):
    """``coefficient · Σ e^4``, and ``coefficient · Σ f²`` of the latents."""

    name: ClassVar[str] = "fourth"
    coefficient: float = 0.5

    def build(self, context: TermContext) -> FourthTerm:
        return FourthTerm(self)


@dataclass(frozen=True)
class FourthTerm:
    config: Fourth
    name: str = "fourth"

    def on(self, batch: Batch) -> OnBatch:
        scale = self.config.coefficient
        value, g_out = scale * batch.error_BO.pow(4).sum(), -4 * scale * batch.error_BO.pow(3)

        def of_part(number: int) -> OnPart:
            f = batch.encodings[number].latents.values
            return OnPart((LatentGradients(latents=2 * scale * f),), scale * f.square().sum())

        return OnBatch(value, g_out, of_part)


@dataclass(frozen=True, kw_only=True)
class Extended(TrainingConfig):
    fourth: Fourth | None = None


def dead(coder: Dictionary) -> tuple[Dead, ...]:
    return Dead.of(torch.zeros(coder.d_sae, dtype=torch.bool), coder.parts)


def gradients(coder: Dictionary, config: TrainingConfig, x: torch.Tensor):
    objective = Objective.of(coder, config, None)
    step = GradientPass(coder, config, objective, unit_norm=False)
    return step(x, x, StepState(0, 0.0, 1.0, None, dead(coder)))


def make(kind: str) -> Dictionary:
    if kind == "SAE":
        return SAE(D, F, activation=ReLU(), dtype="float64", seed=1)
    return CLT((D // 2, D // 2), (D // 2, D // 2), F // 2, activation=ReLU(), dtype="float64", seed=1)


@pytest.mark.parametrize("kind", ["SAE", "CLT"])
@pytest.mark.parametrize("levels", [None, Matryoshka(widths=(4,))], ids=["plain", "levels"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_terms_gradients_are_those_of_autograd(kind, levels, parts):
    """On outputs and on latents, on top of the reconstruction's."""
    coder, x = make(kind), batches(1, D)[0]
    common = {"tokens": 64, "revive": None, "levels": levels, "gradient_accumulation": parts}
    with torch.no_grad():
        plain = gradients(coder, TrainingConfig(**common), x)
        both = gradients(coder, Extended(**common, fourth=Fourth()), x)
    own = dict(coder.named_parameters())
    f = coder.encode(x)
    loss = 0.5 * (x - coder.decode(f, x)).pow(4).sum() + 0.5 * f.square().sum()
    expected = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    shares = 1 / parts  # each part of a batch counts by its share of the tokens
    for name, gradient in zip(own, expected, strict=True):
        gained = both.gradients[name] - plain.gradients[name]
        torch.testing.assert_close(gained, torch.zeros_like(gained) if gradient is None else shares * gradient)
    assert float(both.terms["fourth"]) == pytest.approx(shares * float(loss.detach()), rel=1e-12)
    assert [*both.terms] == ["mse", "fourth"]


def test_a_file_with_a_term_and_its_config_loads_without_torch():
    code = "import sys; sys.modules['torch'] = None; import monosema.training.term, monosema.training.terms"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_further_field_of_the_config_trains_and_is_logged():
    config = Extended(tokens=10 * BATCH, lr=0.01, fourth=Fourth(coefficient=0.01))
    trainer = Trainer(make("SAE"), config, BATCH)
    for batch in batches(3, D):
        trainer.step(batch)
    figures = trainer.metrics()
    assert figures["fourth_coefficient"] == 0.01
    assert figures["loss"] == pytest.approx(sum(value for name, value in figures.items() if name.startswith("loss/")))
    assert figures["loss/fourth"] > 0
    assert [each.name for each in config.further_terms] == ["auxk", "fourth"]
    assert fields(config)[-1].name == "fourth"
