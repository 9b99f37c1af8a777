"""Training against dictionary-learning 0.1.0: TopK, BatchTopK, Matryoshka BatchTopK, AuxK and running thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peer import Peer, PeerError
from torch import Tensor
from training_cases import (
    D_IN,
    D_SAE,
    DEAD,
    DEAD_STEPS,
    DICTIONARY_LEARNING,
    FLOAT32,
    FLOAT64,
    LONG_AGO,
    N_STEPS,
    N_TOKENS,
    Run,
    along_decoder,
    assert_close,
    assert_same_losses,
    assert_same_tensors,
    put,
    random_batches,
    random_weights,
    train_ours,
    train_theirs,
)

from monosema.coders import SAE, BatchTopK, TopK
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.coders.config import FixedCount
from monosema.training import AuxK, Matryoshka, Trainer, geometric_median

K, BETA = 5, 0.9
GROUPS = (0.25, 0.35, 0.4)
ALPHA, K_AUX = 1 / 32, D_IN // 2
"""The peer's own."""
CHOICE: dict[str, Any] = {"weight_by_decoder_norm": False, "threshold_rate": 1 - BETA}


@dataclass(frozen=True)
class Case:
    """One trainer of the peer, and ours."""

    trainer: str
    activation: FixedCount
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    loss_factor: float = 1.0
    """Their reconstruction loss over ours."""

    def both(
        self,
        peer: Peer,
        folder: Path,
        weights: dict[str, Tensor],
        batches: Tensor,
        *,
        lr: float = 3e-3,
        dead: Tensor = DEAD,
        dead_steps: int = LONG_AGO,
        record: tuple[str, ...] = (),
        exact: bool = False,
    ) -> tuple[Run, Run, Trainer]:
        """Their run, from step 1 on (at step 0 the peer replaces ``b_dec``), and ours."""
        n_steps = len(batches)
        options = {"steps": n_steps + 2, "lr": lr, "warmup_steps": 0, "k": K}
        options |= {"decay_start": n_steps + 1, "threshold_start_step": 0, "threshold_beta": BETA, **self.options}
        dead_after = (DEAD_STEPS + 1) * N_TOKENS
        theirs = train_theirs(
            peer,
            folder,
            weights,
            batches,
            trainer=self.trainer,
            options=options,
            first_step=1,
            dead=dead,
            dead_tokens=(dead_after, dead_steps * N_TOKENS),
            record=record,
            exact=exact,
        )
        coder = SAE(D_IN, D_SAE, activation=self.activation, dtype=str(batches.dtype).removeprefix("torch."))
        config = {
            **DICTIONARY_LEARNING,
            "lr": lr,
            "grad_clip": 1.0,
            "revive": AuxK(
                coefficient=ALPHA, k=K_AUX, dead_after_tokens=dead_after, normalised=True, straight_through=False
            ),
            **self.config,
        }
        ours, trainer = train_ours(put(coder, weights), config, batches, dead if dead_steps > DEAD_STEPS else None)
        return replace(theirs, gradients=along_decoder(theirs.gradients, weights["W_dec"])), ours, trainer


N_GROUPS = len(GROUPS)
CASES = {
    "top_k": Case("top_k", TopK(k=K, **CHOICE)),
    "batch_top_k": Case("batch_top_k", BatchTopK(k=K, **CHOICE)),
    "matryoshka_batch_top_k": Case(
        "matryoshka_batch_top_k",
        BatchTopK(k=K, **CHOICE),
        {"group_fractions": list(GROUPS)},
        {"levels": Matryoshka(fractions=GROUPS, weights=(1 / N_GROUPS**2,) * N_GROUPS)},
    ),
}
TERMS = {"loss": "loss", "l2_loss": "mse"}


def given(dtype: torch.dtype, n_steps: int) -> tuple[dict[str, Tensor], Tensor]:
    return random_weights(dtype, unit_norm=True, dead="positive"), random_batches(dtype, n_steps)


@pytest.mark.parametrize("name", CASES)
def test_one_step_in_float32(dictionary_learning: Peer, tmp_path: Path, name: str):
    theirs, ours, _ = CASES[name].both(dictionary_learning, tmp_path, *given(torch.float32, 1))
    assert_same_losses(theirs.losses, ours.losses, TERMS, FLOAT32)
    assert theirs.losses[0]["auxk_loss"] * ALPHA == pytest.approx(ours.losses[0]["auxk"], rel=FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32)


@pytest.mark.parametrize("dead_steps", [0, LONG_AGO])
@pytest.mark.parametrize("name", CASES)
def test_twelve_steps_in_float64(dictionary_learning: Peer, tmp_path: Path, name: str, dead_steps: int):
    """The 1e-6 that the peer adds to decoder norms when it projects gradients is taken out, or it shows.

    With dead latents to 1e-6 only: the peer computes AuxK in float32, whatever its weights are in.
    """
    weights, batches = given(torch.float64, N_STEPS)
    case, tolerance = CASES[name], FLOAT64 if dead_steps == 0 else 1e-6
    theirs, ours, trainer = case.both(
        dictionary_learning, tmp_path, weights, batches, dead_steps=dead_steps, exact=True
    )
    assert_same_losses(theirs.losses, ours.losses, TERMS, tolerance)
    assert_same_tensors(theirs.weights, ours.weights, tolerance)
    assert trainer.statistics.tokens_since_fired.tolist() == theirs.state["since_fired"].tolist()
    as_it_comes, ours, _ = case.both(dictionary_learning, tmp_path, weights, batches, dead_steps=dead_steps)
    assert_same_tensors(as_it_comes.weights, ours.weights, 1e-4)


def test_their_matryoshka_loss_is_ours_over_the_squared_number_of_groups(dictionary_learning: Peer, tmp_path: Path):
    """dictionary-learning 0.1.0 weights groups by 1/G and then takes the mean over them as well; ours is their sum."""
    ours_by_default = replace(CASES["matryoshka_batch_top_k"], config={"levels": Matryoshka(fractions=GROUPS)})
    weights, batches = given(torch.float32, 1)
    theirs, ours, _ = ours_by_default.both(dictionary_learning, tmp_path, weights, batches)
    assert theirs.losses[0]["l2_loss"] * N_GROUPS**2 == pytest.approx(ours.losses[0]["mse"], rel=FLOAT32)
    f = batch_top_k(weights, batches[0])
    errors = [batches[0] - weights["b_dec"] - f[:, :m] @ weights["W_dec"][:m] for m in (10, 24, D_SAE)]
    by_hand = sum(float(error.square().sum(1).mean()) for error in errors)
    assert ours.losses[0]["mse"] == pytest.approx(by_hand, rel=FLOAT32)


def test_their_threshold_gives_the_first_batch_the_weight_of_all_before_it(dictionary_learning: Peer, tmp_path: Path):
    """dictionary-learning 0.1.0 starts its mean at the first batch's value; ours weights batches by age alone."""
    weights, batches = given(torch.float64, N_STEPS)
    theirs, _, trainer = CASES["batch_top_k"].both(dictionary_learning, tmp_path, weights, batches, lr=1e-15)
    least = torch.stack([(f := batch_top_k(weights, x))[f > 0].min() for x in batches])
    ages = torch.arange(N_STEPS - 1, -1, -1, dtype=torch.float64)
    shares = (1 - BETA) * BETA**ages
    there = BETA ** (N_STEPS - 1) * least[0] + (shares[1:] * least[1:]).sum()
    assert float(theirs.state["threshold"]) == pytest.approx(float(there), rel=1e-6)  # theirs is kept in float32
    assert threshold_of(trainer) == pytest.approx(float((shares * least).sum() / shares.sum()), rel=FLOAT64)
    assert float(least.std()) > 0.01


def test_topk_thresholds_agree_on_the_first_batch(dictionary_learning: Peer, tmp_path: Path):
    """The mean over tokens of the least activation chosen."""
    weights, batches = given(torch.float64, 1)
    theirs, _, trainer = CASES["top_k"].both(dictionary_learning, tmp_path, weights, batches)
    pre = (batches[0] - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    least = float(pre.topk(K).values[:, -1].mean())
    assert float(theirs.state["threshold"]) == pytest.approx(least, rel=1e-6)
    assert threshold_of(trainer) == pytest.approx(least, rel=FLOAT64)


def test_their_topk_threshold_is_infinite_for_good_after_a_token_without_active_latents(
    dictionary_learning: Peer, tmp_path: Path
):
    """dictionary-learning 0.1.0 takes such a token's least activation to be infinite; it is 0 here."""
    weights, batches = given(torch.float64, 3)
    weights["b_enc"].fill_(-1.0)
    batches[0, 0] = weights["b_dec"]  # its pre-activations are the biases
    case = CASES["top_k"]
    theirs, _, trainer = case.both(dictionary_learning, tmp_path, weights, batches, lr=1e-15, dead_steps=0)
    assert float(theirs.state["threshold"]) == float("inf")
    least = []
    for x in batches:
        pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        least.append(float(pre.topk(K).values[:, -1].clamp(min=0).mean()))
    shares = [(1 - BETA) * BETA**age for age in (2, 1, 0)]
    expected = sum(share * value for share, value in zip(shares, least, strict=True)) / sum(shares)
    assert threshold_of(trainer) == pytest.approx(expected, rel=FLOAT64)


def test_their_topk_counts_latents_of_activation_zero_as_fired(dictionary_learning: Peer, tmp_path: Path):
    """dictionary-learning 0.1.0: with nothing active, the latents it picks among zeros never count as dead."""
    weights, batches = given(torch.float64, 3)
    weights["b_enc"].fill_(-50.0)
    theirs, _, trainer = CASES["top_k"].both(dictionary_learning, tmp_path, weights, batches, dead_steps=0)
    assert (theirs.state["since_fired"] == 0).sum() == K
    assert trainer.statistics.tokens_since_fired.tolist() == [3 * N_TOKENS] * D_SAE


def test_their_batch_topk_fails_where_nothing_is_active(dictionary_learning: Peer, tmp_path: Path):
    """dictionary-learning 0.1.0 assigns a number to a buffer; here the threshold is 0."""
    weights, batches = given(torch.float64, 1)
    weights["b_enc"].fill_(-50.0)
    coder = put(SAE(D_IN, D_SAE, activation=BatchTopK(k=K, **CHOICE), dtype="float64"), weights)
    _, trainer = train_ours(coder, DICTIONARY_LEARNING, batches)
    assert threshold_of(trainer) == 0
    with pytest.raises(PeerError, match="TypeError"):
        CASES["batch_top_k"].both(dictionary_learning, tmp_path, weights, batches)


def test_the_starting_bias_is_the_geometric_median(dictionary_learning: Peer, tmp_path: Path):
    """Theirs is set at step 0 from its batch, to 1e-5."""
    weights, batches = given(torch.float64, 1)
    theirs = train_theirs(
        dictionary_learning,
        tmp_path,
        weights,
        batches,
        trainer="top_k",
        options={"steps": 2, "lr": 1e-15, "warmup_steps": 0, "k": K},
    )
    ours = geometric_median(batches[0], tolerance=1e-12, max_iterations=1000).median
    assert isinstance(ours, Tensor)
    assert_close(theirs.weights["b_dec"], ours, 1e-4, "b_dec")
    assert float((batches[0].mean(0) - ours).abs().max()) > 0.01


def batch_top_k(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The batch's largest activations, dense."""
    pre = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).clamp(min=0)
    return pre * (pre >= pre.flatten().topk(K * len(x)).values[-1])


def threshold_of(trainer: Trainer) -> float | None:
    activation = trainer.coder.parts[0].coder.activation
    assert isinstance(activation, FixedCountActivation)
    return activation.threshold
