"""Schedules and input scaling of training against sae-lens 6.54.12 and dictionary-learning 0.1.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peer import Peer
from training_cases import (
    D_IN,
    D_SAE,
    FLOAT64,
    N_STEPS,
    N_TOKENS,
    SAELENS,
    assert_close,
    jumprelu,
    put,
    random_batches,
    random_weights,
    train_theirs,
)

from monosema.coders import SAE, BatchTopK, ReLU, TopK
from monosema.coders.config import ActivationConfig
from monosema.training import L0, L1, Trainer, TrainingConfig
from monosema.training.schedules import lr_factor, warmup_factor

N, WARM, DECAY = 40, 5, 11
BY_NORM = {"k": 5, "rescale_acts_by_decoder_norm": True, "aux_loss_coefficient": 0.0}


@pytest.mark.parametrize(
    ("theirs", "ours", "n_cycles"),
    [
        ("constant", "constant", 1),
        ("cosineannealing", "cosine", 1),
        ("cosineannealingwarmrestarts", "cosine_restarts", 1),
        ("cosineannealingwarmrestarts", "cosine_restarts", 3),
    ],
)
@pytest.mark.parametrize(("warm", "decay"), [(0, 0), (WARM, DECAY), (WARM, 0), (0, DECAY - WARM)])
def test_saelens_learning_rates(saelens: Peer, theirs: str, ours: str, n_cycles: int, warm: int, decay: int):
    """Cycles of equal length are asked for: sae-lens rounds theirs down."""
    n_steps = N - (N - warm - decay) % n_cycles
    there = saelens.call(
        "lr_schedule", name=theirs, n_steps=n_steps, warm_up_steps=warm, decay_steps=decay, n_cycles=n_cycles
    )["lr"]
    shares = {"warmup_fraction": warm / n_steps, "decay_fraction": decay / n_steps, "end_fraction": 0.1}
    here = [lr_factor(step, n_steps, **shares, kind=ours, cycles=n_cycles) for step in range(n_steps)]
    assert here == pytest.approx(there, abs=1e-8)


def test_dictionary_learning_rises_one_step_later(dictionary_learning: Peer):
    """Its first step in 0.1.0 has a learning rate of 0, which changes nothing; ours has ``1 / warm-up``."""
    arguments: dict[str, Any] = {"lr": {"warmup_steps": WARM, "decay_start": N - DECAY}, "sparsity_warmup_steps": WARM}
    there = dictionary_learning.call("schedules", n_steps=N, **arguments)
    here = [lr_factor(step, N, warmup_fraction=WARM / N, decay_fraction=DECAY / N) for step in range(N)]
    assert there["lr"][0] == 0
    assert here[:WARM] == pytest.approx(there["lr"][1 : WARM + 1])
    assert here[WARM:] == pytest.approx(there["lr"][WARM:])
    assert [warmup_factor(step, N, WARM / N) for step in range(N)] == pytest.approx(there["penalty"])


@pytest.mark.parametrize(
    ("architecture", "activation", "options", "config"),
    [
        (
            "standard",
            ReLU(),
            {"l1_coefficient": 0.3},
            {"sparsity": L1(coefficient=0.3, weighting="decoder_norm", warmup_fraction=0.0)},
        ),
        (
            "jumprelu",
            jumprelu(0.5),
            {"jumprelu_bandwidth": 0.5, "l0_coefficient": 0.3},
            {"sparsity": L0(coefficient=0.3, warmup_fraction=0.0)},
        ),
        ("topk", TopK(k=5, inference="topk", weight_by_decoder_norm=True), BY_NORM, {}),
        ("batchtopk", BatchTopK(k=5, inference="topk", weight_by_decoder_norm=True), BY_NORM, {}),
    ],
)
@pytest.mark.parametrize("scaling", ["expected_average_only_in", "none"])
def test_a_whole_run_of_saelens_on_scaled_inputs(
    saelens: Peer,
    tmp_path: Path,
    architecture: str,
    activation: ActivationConfig,
    options: dict[str, Any],
    config: dict[str, Any],
    scaling: str,
):
    """The coder for raw inputs at the end: its scale from the first batches, folded in after training on the others.

    To 1e-6 only with scaling, whose factor sae-lens sums up in float32.
    """
    n_estimate = 3
    names = ("W_enc", "b_enc", "W_dec", "b_dec", *(("threshold",) if architecture == "jumprelu" else ()))
    weights = random_weights(torch.float64, names=names)
    if "threshold" in weights:
        weights["threshold"] += 0.1
    batches = 3 * random_batches(torch.float64, n_estimate + N_STEPS)
    theirs = train_theirs(
        saelens,
        tmp_path,
        weights,
        batches,
        "fit",
        architecture=architecture,
        options={"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": scaling, **options},
        run={"lr": 3e-3},
        n_estimate=n_estimate if scaling != "none" else 0,
    )
    trained_on = batches[n_estimate:] if scaling != "none" else batches
    coder = put(SAE(D_IN, D_SAE, activation=activation, dtype="float64"), weights)
    training = TrainingConfig(
        **{
            **SAELENS,
            **config,
            "tokens": len(trained_on) * N_TOKENS,
            "lr": 3e-3,
            "input_scaling": "expected_norm" if scaling != "none" else "none",
        }
    )
    trainer = Trainer(coder, training, N_TOKENS)
    trainer.initialise(batches[:n_estimate].flatten(0, 1))
    for batch in trained_on:
        trainer.step(batch)
    ours = trainer.inference_coder()
    tolerance = 1e-6 if scaling != "none" else FLOAT64
    assert_close(theirs.state["output"], ours(batches[-1]).detach(), tolerance, "output")
    assert ours.b_dec is not None
    assert_close(theirs.state["b_dec"], ours.b_dec, tolerance, "b_dec")
