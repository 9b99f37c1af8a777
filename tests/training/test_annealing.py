"""p-annealing through the trainer, against penalties computed from the weights each step began with."""

from __future__ import annotations

import pytest
import torch
from training_tiny import BATCH, D, F, batches

from monosema.coders import SAE, ReLU
from monosema.training import Lp, Trainer, TrainingConfig

N_STEPS, START, EVERY = 52, 28, 12


def annealed(accumulation, rows, watch=None):
    """A run with p = 1, 0.75, 0.5 from steps 28 and 40; ``watch(trainer, batch)`` is called before each step."""
    coder = SAE(D, F, activation=ReLU(), dtype="float64", seed=1)
    with torch.no_grad():
        coder.W_dec.mul_(torch.linspace(0.5, 2, F).unsqueeze(1))
    config = TrainingConfig(
        tokens=N_STEPS * BATCH,
        lr=0.02,
        decoder="free",
        revive=None,
        gradient_accumulation=accumulation,
        sparsity=Lp(p_end=0.5, n_updates=2, anneal_start_fraction=START / N_STEPS, warmup_fraction=0.0),
    )
    trainer = Trainer(coder, config, BATCH)
    for batch in rows:
        if watch is not None:
            watch(trainer, batch)
        trainer.step(batch)
    return trainer


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_coefficient_keeps_the_penalty_of_the_last_ten_steps(accumulation):
    seen, used = [], []

    def watch(trainer, batch):
        coder = trainer.coder
        v = coder.encode(batch).detach() * coder.W_dec.detach().norm(dim=1)
        seen.append([float(v.pow(p).sum(1).mean()) for p in (1.0, 0.75, 0.5)])
        used.append((trainer.control.annealer.p, trainer.control.coefficient(trainer.step_number)))

    trainer = annealed(accumulation, batches(N_STEPS), watch)
    now, coming = (sum(step[power] for step in seen[START - 10 : START]) for power in (0, 1))
    first = now / coming
    now, coming = (sum(step[power] for step in seen[START + EVERY - 10 : START + EVERY]) for power in (1, 2))
    second = first * now / coming
    assert [p for p, _ in used] == [1.0] * START + [0.75] * EVERY + [0.5] * EVERY
    expected = [0.1] * START + [0.1 * first] * EVERY + [0.1 * second] * EVERY
    assert [coefficient for _, coefficient in used] == pytest.approx(expected, rel=1e-12)
    assert trainer.control.annealer.factor == pytest.approx(second, rel=1e-12)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    rows = batches(N_STEPS)
    whole, parts = (dict(annealed(n, rows).coder.named_parameters()) for n in (1, 4))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-9)
