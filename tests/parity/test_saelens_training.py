"""Training against sae-lens 6.54.12: standard, gated and JumpReLU SAEs, and transcoders.

On equal weights and inputs: loss terms and gradients of one step in float32, and twelve optimiser steps of both
trainers in float64 with warm-up, decay and clipping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    DEAD_STEPS,
    FLOAT32,
    FLOAT64,
    LONG_AGO,
    N_STEPS,
    N_TOKENS,
    SAELENS,
    Run,
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

from monosema.coders import SAE, Gated, JumpReLU, ReLU, Transcoder
from monosema.coders.config import ActivationConfig
from monosema.training import L0, L1, Lp, PreActivationLoss, QuadraticL0, Tanh

THERE: dict[str, Any] = {"lr": 3e-3, "lr_warm_up_steps": 3, "lr_decay_steps": 6, "dead_feature_window": DEAD_STEPS}
HERE: dict[str, Any] = {
    **SAELENS,
    "lr": 3e-3,
    "warmup_fraction": 3 / N_STEPS,
    "decay_fraction": 6 / N_STEPS,
}
"""The same there and here."""
BANDWIDTH = 0.5
JUMP = {"jumprelu_bandwidth": BANDWIDTH, "l0_coefficient": 0.7}
SHARED = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class Case:
    """One objective, there and here."""

    architecture: str
    options: dict[str, Any]
    activation: ActivationConfig
    config: dict[str, Any]
    terms: dict[str, str]
    names: tuple[str, ...] = SHARED
    dead: Tensor | None = None
    """Latents that both sides take for dead; those of ``DEAD`` then do not fire."""


STANDARD = {"loss": "loss", "mse_loss": "mse"}
JUMP_NAMES = (*SHARED, "threshold")
DEAD_AFTER = (DEAD_STEPS + 1) * N_TOKENS
CASES = {
    "standard, L1": Case(
        "standard",
        {"l1_coefficient": 0.6, "l1_warm_up_steps": 4},
        ReLU(),
        {"sparsity": L1(coefficient=0.6, weighting="decoder_norm", warmup_fraction=4 / N_STEPS)},
        {**STANDARD, "l1_loss": "l1"},
    ),
    **{
        f"standard, p={p}": Case(
            "standard",
            {"l1_coefficient": 0.02, "lp_norm": p},
            ReLU(),
            {"sparsity": Lp(coefficient=0.02, p=p, root=True, weighting="decoder_norm", warmup_fraction=0.0)},
            {**STANDARD, "l1_loss": "lp"},
        )
        for p in (0.5, 1.5, 2.0)
    },
    **{
        f"jumprelu, {mode}{', to the input' * ste}": Case(
            "jumprelu",
            {**JUMP, "jumprelu_sparsity_loss_mode": mode, "jumprelu_ste_to_input": ste, **options},
            jumprelu(BANDWIDTH, ste_to_input=ste),
            {"sparsity": sparsity},
            {**STANDARD, "l0_loss": term},
            JUMP_NAMES,
        )
        for mode, options, sparsity, term in (
            ("step", {"l0_warm_up_steps": 4}, L0(coefficient=0.7, warmup_fraction=4 / N_STEPS), "l0"),
            (
                "tanh",
                {"jumprelu_tanh_scale": 2.0},
                Tanh(coefficient=0.7, scale=2.0, weighting="decoder_norm", warmup_fraction=0.0),
                "tanh",
            ),
            (
                "quadratic",
                {"target_l0": 9.0},
                QuadraticL0(coefficient=0.7, target=9.0, warmup_fraction=0.0),
                "quadraticl0",
            ),
        )
        for ste in (False, True)
    },
    "jumprelu, pre-activation loss": Case(
        "jumprelu",
        {**JUMP, "pre_act_loss_coefficient": 0.4},
        jumprelu(BANDWIDTH),
        {
            "sparsity": L0(coefficient=0.7, warmup_fraction=0.0),
            "revive": PreActivationLoss(coefficient=0.4, dead_only=True, dead_after_tokens=DEAD_AFTER),
        },
        {**STANDARD, "l0_loss": "l0", "pre_act_loss": "pre_activation"},
        JUMP_NAMES,
        dead=DEAD,
    ),
}


def both(
    saelens: Peer, folder: Path, case: Case, dtype: torch.dtype, n_steps: int, b_dec_to_input: bool = True
) -> tuple[Run, Run]:
    """Their run and ours."""
    weights = random_weights(dtype, names=case.names, dead="none" if case.dead is None else "silent")
    batches = random_batches(dtype, n_steps)
    options = {"d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": b_dec_to_input, **case.options}
    sparsity = case.config["sparsity"]
    if n_steps == 1:  # nothing is to be seen of a loss in the first step of its warm-up
        options = {name: value for name, value in options.items() if not name.endswith("warm_up_steps")}
        sparsity = replace(sparsity, warmup_fraction=0.0)
    theirs = train_theirs(
        saelens,
        folder,
        weights,
        batches,
        architecture=case.architecture,
        options=options,
        run=THERE if n_steps > 1 else {"lr": 1e-3, "dead_feature_window": DEAD_STEPS},
        dead_steps=None if case.dead is None else LONG_AGO,
        **({} if case.dead is None else {"dead": case.dead}),
    )
    b_dec = "input_and_output" if b_dec_to_input else "output"
    coder = SAE(D_IN, D_SAE, activation=case.activation, b_dec=b_dec, dtype=str(dtype).removeprefix("torch."))
    config = {**HERE, **case.config, "sparsity": sparsity}
    ours, _ = train_ours(put(coder, weights), config, batches, case.dead)
    return theirs, ours


@pytest.mark.parametrize("b_dec_to_input", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_one_step_in_float32(saelens: Peer, tmp_path: Path, name: str, b_dec_to_input: bool):
    theirs, ours = both(saelens, tmp_path, CASES[name], torch.float32, 1, b_dec_to_input)
    assert_same_losses(theirs.losses, ours.losses, CASES[name].terms, FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32)


@pytest.mark.parametrize("name", CASES)
def test_twelve_steps_in_float64(saelens: Peer, tmp_path: Path, name: str):
    theirs, ours = both(saelens, tmp_path, CASES[name], torch.float64, N_STEPS)
    assert_same_losses(theirs.losses, ours.losses, CASES[name].terms, FLOAT64)
    if "threshold" in theirs.weights:  # both keep θ ≥ 0: we after a step, they before the next
        theirs.weights["threshold"].clamp_(min=0)
    assert_same_tensors(theirs.weights, ours.weights, FLOAT64)


def test_their_pre_activation_loss_is_ours_of_all_latents_where_all_are_dead(saelens: Peer, tmp_path: Path):
    """sae-lens 6.54.12 takes it of dead latents alone; ours, as Anthropic's, of all unless ``dead_only``."""
    case = CASES["jumprelu, pre-activation loss"]
    of_all = {**case.config, "revive": PreActivationLoss(coefficient=0.4)}
    case = replace(case, dead=torch.ones(D_SAE, dtype=torch.bool), config=of_all)
    theirs, ours = both(saelens, tmp_path, case, torch.float32, 1)
    assert_same_losses(theirs.losses, ours.losses, case.terms, FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32)


@pytest.mark.parametrize("b_dec_to_input", [True, False])
def test_gated_is_the_same_but_for_the_decoder_that_saelens_does_not_freeze(
    saelens: Peer, tmp_path: Path, b_dec_to_input: bool
):
    """sae-lens 6.54.12 lets the auxiliary reconstruction move the decoder, which arXiv 2404.16014 (eq. 8) freezes."""
    case = Case(
        "gated",
        {"l1_coefficient": 0.6},
        Gated(),
        {"sparsity": L1(coefficient=0.6, weighting="decoder_norm", warmup_fraction=0.0)},
        {**STANDARD, "l1_loss": "l1", "auxiliary_reconstruction_loss": "gate_mse"},
        ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"),
    )
    theirs, ours = both(saelens, tmp_path, case, torch.float32, 1, b_dec_to_input)
    assert_same_losses(theirs.losses, ours.losses, case.terms, FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32, leave_out=("W_dec", "b_dec"))

    w = {name: value.double() for name, value in random_weights(torch.float32, names=case.names).items()}
    x = random_batches(torch.float32, 1)[0].double()
    pi = (x - w["b_dec"] * b_dec_to_input) @ w["W_enc"] + w["b_gate"]
    off = torch.relu(pi) @ w["W_dec"] + w["b_dec"] - x
    through_decoder = {"W_dec": 2 / N_TOKENS * torch.relu(pi).T @ off, "b_dec": 2 / N_TOKENS * off.sum(0)}
    for name, excess in through_decoder.items():
        assert_close(theirs.gradients[name].double() - ours.gradients[name].double(), excess, 10 * FLOAT32, name)

    leaves = {name: value.requires_grad_() for name, value in w.items()}
    pre = (x - leaves["b_dec"] * b_dec_to_input) @ leaves["W_enc"]
    gate = torch.relu(pre + leaves["b_gate"])
    f = (gate > 0) * torch.relu(pre * leaves["r_mag"].exp() + leaves["b_mag"])
    errors = x - f @ leaves["W_dec"] - leaves["b_dec"], x - gate @ leaves["W_dec"].detach() - leaves["b_dec"].detach()
    penalty = 0.6 * (gate * leaves["W_dec"].norm(dim=1)).sum()
    ((sum(error.square().sum() for error in errors) + penalty) / N_TOKENS).backward()
    right = {name: leaf.grad.float() for name, leaf in leaves.items() if leaf.grad is not None}
    assert_same_tensors(right, ours.gradients, FLOAT32)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", [ReLU(), jumprelu(BANDWIDTH)], ids=lambda a: type(a).__name__)
def test_transcoders(saelens: Peer, tmp_path: Path, activation: ActivationConfig, skip: bool):
    """sae-lens 6.54.12 does not train transcoders: the reconstruction loss is taken of its inference classes.

    Those have no estimate of a threshold's gradient.
    """
    d_out, jumps = 9, isinstance(activation, JumpReLU)
    names = (*(JUMP_NAMES if jumps else SHARED), *(("W_skip",) if skip else ()))
    weights = random_weights(torch.float32, names=names, d_out=d_out)
    rows = random_batches(torch.float32, 1, D_IN + d_out)
    theirs = train_theirs(
        saelens,
        tmp_path,
        weights,
        rows,
        "transcode",
        architecture=("jumprelu_" if jumps else "") + ("skip_" if skip else "") + "transcoder",
        options={"d_in": D_IN, "d_out": d_out, "d_sae": D_SAE, "apply_b_dec_to_input": False},
    )
    coder = put(Transcoder(D_IN, d_out, D_SAE, activation=activation, skip=skip), weights)
    output = coder(rows[0, :, :D_IN]).detach()
    reconstruction_only = {**HERE, "sparsity": L1(weighting="decoder_norm", warmup_fraction=1.0)}
    ours, _ = train_ours(coder, reconstruction_only, rows)
    assert_close(theirs.state["output"], output, FLOAT32)
    assert theirs.losses[0]["mse"] == pytest.approx(ours.losses[0]["mse"], rel=FLOAT32)
    assert ours.losses[0]["loss"] == ours.losses[0]["mse"]
    ours.gradients.pop("threshold", None)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32)
