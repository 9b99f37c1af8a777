"""The table of what goes together: every combination trains or is refused with both names and a reason."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from training_tiny import ACTIVATIONS, make_trainer

from monosema.coders import CLT, SAE, ActivationConfig, Crosscoder, Dictionary, Transcoder
from monosema.coders.activations.registry import activation_kinds
from monosema.coders.config import TokenScaling
from monosema.core.errors import ConfigError
from monosema.training import Trainer, TrainingConfig, terms
from monosema.training.allowed import (
    LEVELS,
    POLICIES,
    SPARSITIES,
    TOKEN_SCALINGS,
    VARIANTS,
    activations,
    combinations,
    default_sparsity,
    refused,
)

D, F, ROWS = 6, 12, 16
LOSSES = {
    "None": None,
    "L1": terms.L1(coefficient=0.1),
    "Lp": terms.Lp(coefficient=0.1, p=0.9, p_end=0.6, anneal_start_fraction=0.0, n_updates=1),
    "Tanh": terms.Tanh(coefficient=0.1),
    "L0": terms.L0(coefficient=0.1),
    "QuadraticL0": terms.QuadraticL0(target=3.0),
    "RatioL0": terms.RatioL0(target=3.0),
}
NESTED = {
    "None": None,
    "Matryoshka": terms.Matryoshka(widths=(4,)),
    "HierarchicalTopK": terms.HierarchicalTopK(budgets=(1, 3)),
}
REVIVALS = {
    "None": None,
    "AuxK": terms.AuxK(dead_after_tokens=1, k=2),
    "GhostGradients": terms.GhostGradients(dead_after_tokens=1),
    "PreActivationLoss": terms.PreActivationLoss(coefficient=0.1),
    "Resample": terms.Resample(every_tokens=ROWS, dead_after_tokens=1),
}


def build(variant: str, activation: ActivationConfig) -> Dictionary:
    match variant:
        case "SAE":
            return SAE(D, F, activation=activation)
        case "Transcoder" | "SkipTranscoder":
            return Transcoder(D, D, F, activation=activation, skip=variant == "SkipTranscoder")
        case "Crosscoder":
            return Crosscoder((D // 2, D // 2), F, activation=activation)
    return CLT((D // 2, D // 2), (D // 2, D // 2), F // 2, activation=activation)


def test_the_table_names_everything_there_is():
    assert set(activations()) == set(activation_kinds()) == set(ACTIVATIONS)
    assert set(SPARSITIES) == {"None"} | {kind.__name__ for kind in get_args(terms.Sparsity)} == set(LOSSES)
    assert set(LEVELS) == {"None"} | {kind.__name__ for kind in get_args(terms.LevelsConfig)} == set(NESTED)
    assert set(POLICIES) == {"None"} | {kind.__name__ for kind in get_args(terms.Revive)} == set(REVIVALS)
    assert get_args(TokenScaling) == TOKEN_SCALINGS


def test_refusals_are_fewer_than_a_fifth():
    every = list(combinations())
    assert len(every) == 5 * 7 * 7 * 3 * 5 + 5 * 7 * 2
    found = [each for each in every if each.refusal is not None]
    assert 0 < len(found) < len(every) / 5
    assert all(pair[0] in reason or len(reason) > 20 for pair, reason in refused().items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_combination_trains_or_is_refused_naming_both(variant, name):
    x = torch.randn(3 * ROWS, 2 * D, generator=torch.Generator().manual_seed(1))
    rows = x[:, :D] if variant in ("SAE", "Crosscoder") else x
    for each in combinations():
        if (each.variant, each.activation) != (variant, name):
            continue
        config = TrainingConfig(
            tokens=4 * ROWS,
            lr=1e-3,
            sparsity=LOSSES[each.sparsity],
            levels=NESTED[each.levels],
            revive=REVIVALS[each.policy],
            input_scaling="expected_norm" if each.token_scaling == "none" else each.token_scaling,
        )
        coder = build(variant, ACTIVATIONS[name])
        if each.refusal is not None:
            pair = (
                f"{variant} and {each.token_scaling}" if each.token_scaling != "none" else f"{name} and {each.sparsity}"
            )
            with pytest.raises(ConfigError, match=rf"{pair} cannot be used together: .{{20}}"):
                Trainer(coder, config, ROWS)
            assert coder.config.token_scaling == "none"
            continue
        trainer = Trainer(coder, config, ROWS)
        assert coder.config.token_scaling == each.token_scaling
        trainer.initialise(rows)
        before = trainer.coder.parts[0].coder.W_enc_rows.detach().clone()
        for batch in rows.split(ROWS)[:2]:
            trainer.step(batch)
        trainer.check_finite()
        assert not torch.equal(before, trainer.coder.parts[0].coder.W_enc_rows), each
        assert trainer.metrics()["loss"] > 0


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_trains_with_the_default(name):
    trainer = make_trainer(name, sparsity=None)
    default = default_sparsity(type(ACTIVATIONS[name]))
    assert trainer.control.sparsity == default
    assert (trainer.control.controller is None) == (default is None)
