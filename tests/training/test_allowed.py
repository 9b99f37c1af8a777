"""The table of what goes together: every pair trains or is refused with both names and a reason."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from training_tiny import ACTIVATIONS, batches, make_trainer

from monosema.coders import ActivationConfig
from monosema.core.errors import ConfigError
from monosema.training import L0, L1
from monosema.training.allowed import RULES, resolve_sparsity

LOSSES = {"L1": L1(coefficient=0.1), "L0": L0(coefficient=0.1)}
PAIRS = list(itertools.product(ACTIVATIONS, LOSSES))
REFUSED = {("TopK", "L1"), ("TopK", "L0"), ("BatchTopK", "L1"), ("BatchTopK", "L0"), ("ReLU", "L0"), ("Gated", "L0")}
"""Fixed-count activations have nothing left for a sparsity loss, and a count has no gradient without a threshold."""


def test_the_table_has_every_activation_and_knows_only_losses_that_exist():
    assert set(RULES) == {kind.__name__ for kind in get_args(ActivationConfig)} == set(ACTIVATIONS)
    assert all(set(rule.refused) <= set(LOSSES) for rule in RULES.values())
    assert {(name, loss) for name, rule in RULES.items() for loss in rule.refused} == REFUSED


@pytest.mark.parametrize(("name", "loss"), PAIRS)
@pytest.mark.parametrize("decoder", ["unit_norm", "free"])
def test_a_pair_trains_or_is_refused_naming_both(name, loss, decoder):
    if (name, loss) in REFUSED:
        with pytest.raises(ConfigError, match=rf"sparsity {loss} cannot be used with {name}: .*(k already|use L1)"):
            make_trainer(name, sparsity=LOSSES[loss], decoder=decoder)
        return
    trainer = make_trainer(name, sparsity=LOSSES[loss], decoder=decoder)
    for batch in batches(3):
        trainer.step(batch)
    trainer.check_finite()
    assert trainer.metrics()[f"loss/{loss.lower()}"] > 0
    assert trainer.metrics()["sparsity_coefficient"] > 0


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_trains_with_the_default(name):
    config = ACTIVATIONS[name]
    assert resolve_sparsity(config, None) is RULES[name].default
    trainer = make_trainer(name, sparsity=None)
    trainer.step(batches(1)[0])
    trainer.check_finite()
    assert (trainer.controller is None) == (RULES[name].default is None)
