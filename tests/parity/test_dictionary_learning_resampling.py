"""Resampling of dead latents against dictionary-learning 0.1.0, on weights that otherwise stand still.

The last batch is one vector many times over, so that it does not matter which of its rows are drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peer import Peer
from torch import Tensor
from training_cases import (
    D_IN,
    D_SAE,
    DEAD,
    DICTIONARY_LEARNING,
    FLOAT64,
    N_TOKENS,
    Run,
    assert_close,
    put,
    random_batches,
    random_weights,
    train_ours,
    train_theirs,
)

from monosema.coders import SAE, ReLU
from monosema.training import L1, Resample, Trainer
from monosema.training.resample import squared_errors

EVERY = 10
"""Steps between resamplings; a latent is dead after more than half of them without firing."""
L1_COEFFICIENT = 0.6


def given(b_dec: float, repeated: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """Weights with latents that fire in the first two batches alone, and the batches up to the first resampling."""
    weights = random_weights(torch.float64, unit_norm=True)
    weights["W_enc"][0, DEAD] = 1.0
    weights["b_enc"][DEAD] = -20.0
    weights["b_dec"] *= b_dec
    batches = random_batches(torch.float64, EVERY)
    batches[:2, :, 0] += 30
    if repeated:
        batches[-1] = batches[-1, :1].clone()
    return weights, batches


def theirs_on(peer: Peer, folder: Path, weights: dict[str, Tensor], batches: Tensor, trainer: str) -> Run:
    options: dict[str, Any] = {"steps": 4 * EVERY, "lr": 1e-15, "warmup_steps": 1, "resample_steps": EVERY}
    options |= {"sparsity_warmup_steps": None}
    first_step = 1
    if trainer == "standard":
        options |= {"l1_penalty": L1_COEFFICIENT}
    else:
        options |= {"initial_sparsity_penalty": L1_COEFFICIENT, "anneal_start": 1000}
        first_step = 0  # p-annealing resamples after the last step of a period, the other after the first of the next
    return train_theirs(peer, folder, weights, batches, trainer=trainer, options=options, first_step=first_step)


def ours_on(weights: dict[str, Tensor], batches: Tensor) -> tuple[Run, Trainer]:
    config = {
        **DICTIONARY_LEARNING,
        "tokens": 4 * EVERY * N_TOKENS,
        "lr": 1e-15,
        "sparsity": L1(coefficient=L1_COEFFICIENT, weighting="none", warmup_fraction=0.0),
        "revive": Resample(every_tokens=EVERY * N_TOKENS, dead_after_tokens=(EVERY // 2 + 1) * N_TOKENS),
    }
    coder = put(SAE(D_IN, D_SAE, activation=ReLU(), dtype="float64"), weights)
    run, trainer = train_ours(coder, config, batches)
    assert trainer.metrics()["n_resampled"] == int(DEAD.sum())
    return run, trainer


def test_their_new_encoder_rows_have_the_norm_of_the_input_as_a_further_factor(
    dictionary_learning: Peer, tmp_path: Path
):
    """dictionary-learning 0.1.0 scales the sampled input itself by 0.2 of the mean norm of living encoder rows.

    Bricken et al. 2023 re-normalise the input to that norm. All else about a replaced latent is the same.
    """
    weights, batches = given(b_dec=0.0)
    theirs = theirs_on(dictionary_learning, tmp_path, weights, batches, "standard")
    ours, trainer = ours_on(weights, batches)
    v = batches[-1, 0]
    unit = v / v.norm()
    right = unit * 0.2 * weights["W_enc"].T[~DEAD].norm(dim=1).mean()
    assert v.norm() > 2
    for run, row in ((ours, right), (theirs, right * v.norm())):
        assert_close(run.weights["W_enc"].T[DEAD], row.expand(int(DEAD.sum()), -1), FLOAT64, "W_enc")
        assert_close(run.weights["W_dec"][DEAD], unit.expand(int(DEAD.sum()), -1), FLOAT64, "W_dec")
        assert run.weights["b_enc"][DEAD].abs().max() == 0
        for name in ("W_enc", "W_dec", "b_enc"):
            axis = (slice(None), ~DEAD) if name == "W_enc" else ~DEAD
            assert_close(run.weights[name][axis], weights[name][axis], FLOAT64, name)
    tensors, _ = trainer.state_dict()
    for moment in ("exp_avg", "exp_avg_sq"):
        for name, own in (("W_enc", "W_enc_rows"), ("W_dec", "W_dec"), ("b_enc", "b_enc")):
            here, there = tensors[f"adam.{own}.{moment}"], theirs.state[f"{name}.{moment}"]
            there = there.T if name == "W_enc" else there
            assert here[DEAD].abs().max() == there[DEAD].abs().max() == 0  # they were not: the latents have fired
            assert_close(there, here, FLOAT64, f"{name}.{moment}")


def test_new_latents_point_along_inputs_as_the_encoder_sees_them(dictionary_learning: Peer, tmp_path: Path):
    """Ours take the bias off, which the coder subtracts from its input; dictionary-learning 0.1.0 does not."""
    weights, batches = given(b_dec=1.0)
    theirs = theirs_on(dictionary_learning, tmp_path, weights, batches, "standard")
    ours, _ = ours_on(weights, batches)
    v = batches[-1, 0]
    for run, direction in ((theirs, v), (ours, v - weights["b_dec"])):
        unit = (direction / direction.norm()).expand(int(DEAD.sum()), -1)
        assert_close(run.weights["W_dec"][DEAD], unit, FLOAT64, "W_dec")
        rows = run.weights["W_enc"].T[DEAD]
        assert_close(rows / rows.norm(dim=1, keepdim=True), unit, FLOAT64, "W_enc")


def test_they_draw_inputs_by_the_error_and_we_by_the_square_of_the_squared_error(
    dictionary_learning: Peer, tmp_path: Path
):
    """dictionary-learning 0.1.0 draws with probability ∝ ‖e‖; Bricken et al. 2023 ∝ loss², which is ‖e‖⁴."""
    weights, batches = given(b_dec=1.0, repeated=False)
    theirs = theirs_on(dictionary_learning, tmp_path, weights, batches, "standard")
    x = batches[-1]
    f = torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
    norms = (x - f @ weights["W_dec"] - weights["b_dec"]).norm(dim=1)
    assert_close(theirs.state["drawn_from"], norms, FLOAT64)
    coder = put(SAE(D_IN, D_SAE, activation=ReLU(), dtype="float64"), weights)
    assert_close(squared_errors(coder, x, x), norms.square(), FLOAT64)


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_their_p_annealing_resamples_nothing_but_adams_moments(dictionary_learning: Peer, tmp_path: Path, moment: str):
    """dictionary-learning 0.1.0 writes the new weights of ``PAnnealTrainer`` into a copy of the dead rows."""
    weights, batches = given(b_dec=0.0)
    theirs = theirs_on(dictionary_learning, tmp_path, weights, batches, "p_anneal")
    for name in ("W_enc", "W_dec", "b_enc"):
        assert_close(theirs.weights[name], weights[name], FLOAT64, name)
    assert "drawn_from" in theirs.state
    moments = theirs.state[f"W_dec.{moment}"]
    assert moments[DEAD].abs().max() == 0 < moments[~DEAD].abs().max()
