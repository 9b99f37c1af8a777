"""Training against dictionary-learning 0.1.0: standard, April update, p-annealing, gated, JumpReLU.

On equal weights and inputs: loss terms and gradients of one step in float32, and twelve updates by its own trainers in
float64, with the same decay of the learning rate, warm-up of the penalty and clipping.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peer import Peer
from training_cases import (
    D_IN,
    D_SAE,
    DICTIONARY_LEARNING,
    FLOAT32,
    FLOAT64,
    N_STEPS,
    N_TOKENS,
    Run,
    along_decoder,
    assert_close,
    assert_same_losses,
    assert_same_tensors,
    jumprelu,
    put,
    random_batches,
    random_weights,
    train_ours,
    train_theirs,
)

from monosema.coders import SAE, Gated, ReLU
from monosema.coders.config import ActivationConfig, BDecMode
from monosema.training import L1, Lp, RatioL0

SHARED = ("W_enc", "b_enc", "W_dec", "b_dec")
BANDWIDTH, TARGET = 0.5, 9.0
WARMUP, DECAY = 4, 6
"""Steps in which the penalty rises, and in which the learning rate falls."""


@dataclass(frozen=True)
class Case:
    """One trainer of the peer, and ours."""

    trainer: str
    options: dict[str, Any]
    activation: ActivationConfig
    sparsity: L1 | Lp | RatioL0
    terms: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = SHARED
    unit_norm: bool = True
    b_dec: BDecMode = "input_and_output"

    def both(
        self, peer: Peer, folder: Path, dtype: torch.dtype, n_steps: int, *, warm: bool = True, **arguments: Any
    ) -> tuple[Run, Run]:
        """Their run and ours."""
        weights = random_weights(dtype, names=self.names, unit_norm=self.unit_norm)
        if "threshold" in weights:
            weights["threshold"] += 0.1  # theirs may fall below zero while training
        batches = random_batches(dtype, n_steps)
        theirs = train_theirs(
            peer,
            folder,
            weights,
            batches,
            trainer=self.trainer,
            options={
                "steps": n_steps + (n_steps == 1),
                "lr": 3e-3,
                "warmup_steps": 0,
                "sparsity_warmup_steps": WARMUP if warm and n_steps > 1 else None,
                "decay_start": N_STEPS - DECAY if n_steps == N_STEPS else None,
                **self.options,
            },
            **arguments,
        )
        dtype_name = str(dtype).removeprefix("torch.")
        coder = SAE(D_IN, D_SAE, activation=self.activation, b_dec=self.b_dec, dtype=dtype_name)
        warmup = WARMUP / n_steps if warm and n_steps > 1 else 0.0
        config = {
            **DICTIONARY_LEARNING,
            "lr": 3e-3,
            "decay_fraction": DECAY / n_steps if n_steps == N_STEPS else 0.0,
            "decoder": "unit_norm" if self.unit_norm else "free",
            "sparsity": replace(self.sparsity, warmup_fraction=warmup),
            **self.config,
        }
        ours, _ = train_ours(put(coder, weights), config, batches)
        if self.unit_norm:  # theirs is projected later, by its optimiser; ours already is
            theirs = replace(theirs, gradients=along_decoder(theirs.gradients, weights["W_dec"]))
        return theirs, ours


TERMS = {"loss": "loss", "mse_loss": "mse", "sparsity_loss": "penalty"}
CASES = {
    "standard": Case("standard", {"l1_penalty": 0.6}, ReLU(), L1(coefficient=0.6, weighting="none"), {**TERMS}),
    "standard_april": Case(
        "standard_april",
        {"l1_penalty": 0.6},
        ReLU(),
        L1(coefficient=0.6, weighting="decoder_norm"),
        TERMS,
        {"grad_clip": 1.0},
        unit_norm=False,
    ),
    "gdm": Case(
        "gdm",
        {"l1_penalty": 0.6},
        Gated(),
        L1(coefficient=0.6, weighting="none"),
        {**TERMS, "aux_loss": "gate_mse"},
        {"beta1": 0.0},
        ("W_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag"),
    ),
    **{
        f"gated_anneal, {function}": Case(
            "gated_anneal",
            {"sparsity_function": function, "p_start": 0.5, "initial_sparsity_penalty": 0.02, "anneal_start": 1000},
            Gated(),
            Lp(coefficient=0.02, p=0.5, root=function == "Lp", weighting="none"),
            {"loss": "loss", "mse_loss": "mse", "aux_loss": "gate_mse", "lp_loss": "penalty"},
            {"beta1": 0.0},
            ("W_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag"),
        )
        for function in ("Lp", "Lp^p")
    },
    **{
        f"p_anneal, {function}, p={p}": Case(
            "p_anneal",
            {"sparsity_function": function, "p_start": p, "initial_sparsity_penalty": 0.02, "anneal_start": 1000},
            ReLU(),
            Lp(coefficient=0.02, p=p, root=function == "Lp", weighting="none"),
            {"loss": "loss", "lp_loss": "penalty"},
        )
        for function in ("Lp", "Lp^p")
        for p in (1.0, 0.5)
    },
}
JUMP = Case(
    "jumprelu",
    {"bandwidth": BANDWIDTH, "sparsity_penalty": 20.0, "target_l0": TARGET},
    jumprelu(BANDWIDTH),
    RatioL0(coefficient=20.0, target=TARGET),
    {"loss": "loss", "l2_loss": "mse"},
    {"beta1": 0.0, "grad_clip": 1.0},
    (*SHARED, "threshold"),
    b_dec="output",
)


@pytest.mark.parametrize("name", CASES)
def test_one_step_in_float32(dictionary_learning: Peer, tmp_path: Path, name: str):
    theirs, ours = CASES[name].both(dictionary_learning, tmp_path, torch.float32, 1)
    assert_same_losses(theirs.losses, ours.losses, CASES[name].terms, FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32)


@pytest.mark.parametrize("name", CASES)
def test_twelve_steps_in_float64(dictionary_learning: Peer, tmp_path: Path, name: str):
    theirs, ours = CASES[name].both(dictionary_learning, tmp_path, torch.float64, N_STEPS)
    assert_same_losses(theirs.losses, ours.losses, CASES[name].terms, FLOAT64)
    assert_same_tensors(theirs.weights, ours.weights, FLOAT64)


@pytest.mark.parametrize("function", ["Lp", "Lp^p"])
def test_p_annealing(dictionary_learning: Peer, tmp_path: Path, function: str):
    """p, the re-scaled coefficient and the weights over four updates of p.

    The peer's first update only begins to look at the next p, and its last lies behind the end: its ``n`` updates at
    ``start + j · every`` are our ``n - 1`` at ``start + every + 1 + j · every`` (it changes p after a step, we before).
    """
    start, every, n = 5, 10, 5
    n_steps = start + n * every + 1
    case = Case(
        "p_anneal",
        {
            "sparsity_function": function,
            "p_start": 1.0,
            "p_end": 0.5,
            "initial_sparsity_penalty": 0.1,
            "anneal_start": start,
            "anneal_end": start + (n - 1) * every,
            "n_sparsity_updates": n,
        },
        ReLU(),
        Lp(
            coefficient=0.1,
            p=1.0,
            p_end=0.5,
            anneal_start_fraction=(start + every + 1) / n_steps,
            n_updates=n - 1,
            root=function == "Lp",
            weighting="none",
        ),
        {"loss": "loss", "lp_loss": "penalty", "after/p": "p"},
    )
    record = ("p", "sparsity_coeff")
    theirs, ours = case.both(dictionary_learning, tmp_path, torch.float64, n_steps, warm=False, record=record)
    assert_same_losses(theirs.losses, ours.losses, case.terms, FLOAT64)
    assert sorted({step["p"] for step in ours.losses}) == [0.5, 0.625, 0.75, 0.875, 1.0]
    coefficients = [step["sparsity_coefficient"] for step in ours.losses]
    assert len(set(coefficients)) == n
    for there, here in zip(theirs.losses[:-1], coefficients[1:], strict=True):
        assert there["after/sparsity_coeff"] == pytest.approx(here, rel=FLOAT64)
    assert_same_tensors(theirs.weights, ours.weights, FLOAT64)


def test_jumprelu_differs_in_the_gradient_of_thresholds_only(dictionary_learning: Peer, tmp_path: Path):
    """dictionary-learning 0.1.0 estimates ∂L0/∂θ from activations after the jump.

    Those of a latent that is off are zero: it misses all that lie in the window's lower half, and where θ < ε/2 counts
    every one of them that is off, however far below. Ours is arXiv 2407.14435, equation 12, on pre-activations.
    """
    theirs, ours = JUMP.both(dictionary_learning, tmp_path, torch.float32, 1)
    assert_same_losses(theirs.losses, ours.losses, JUMP.terms, FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32, leave_out=("threshold",))

    w = {k: v.double() for k, v in random_weights(torch.float32, names=JUMP.names, unit_norm=True).items()}
    theta = w["threshold"].float().add(0.1).double()
    x = random_batches(torch.float32, 1)[0].double()
    pre = x @ w["W_enc"] + w["b_enc"]
    f = pre * (pre > theta)
    g_f = -2 / N_TOKENS * (x - f @ w["W_dec"] - w["b_dec"]) @ w["W_dec"].T
    g_step = 20.0 * 2 * (float((f > 0).sum()) / N_TOKENS / TARGET - 1) / TARGET / N_TOKENS
    inside = ((pre - theta).abs() < BANDWIDTH / 2).double()
    inside_after = ((f - theta).abs() < BANDWIDTH / 2).double()
    right = -((theta * g_f + g_step) * inside).sum(0) / BANDWIDTH
    assert_close(right.float(), ours.gradients["threshold"], FLOAT32)
    wrong = -(theta * g_f * inside + g_step * inside_after).sum(0) / BANDWIDTH
    assert_close(wrong.float(), theirs.gradients["threshold"], FLOAT32)
    high = theta >= BANDWIDTH / 2
    assert 0.3 < float(inside_after[:, high].sum() / inside[:, high].sum()) < 0.7
    assert inside_after[:, ~high].sum() > 1.5 * inside[:, ~high].sum()


def test_twelve_steps_of_jumprelu_with_that_gradient_repaired(dictionary_learning: Peer, tmp_path: Path):
    """As it comes, the peer's thresholds part from ours; given pre-activations, its trainer's steps are ours.

    To 1e-6 only: it counts active latents in float32, whatever its weights are in.
    """
    apart, ours = JUMP.both(dictionary_learning, tmp_path, torch.float64, N_STEPS)
    assert float((apart.weights["threshold"] - ours.weights["threshold"]).abs().max()) > 1e-3
    theirs, ours = JUMP.both(dictionary_learning, tmp_path, torch.float64, N_STEPS, pre_jump=True, exact=True)
    assert_same_losses(theirs.losses, ours.losses, JUMP.terms, 1e-6)
    assert_same_tensors(theirs.weights, ours.weights, 1e-6)
