"""Training against sae-lens 6.54.12: TopK, AbsTopK, BatchTopK, Matryoshka; AuxK and running thresholds."""

from __future__ import annotations

from dataclasses import dataclass
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
    put,
    random_batches,
    random_weights,
    train_ours,
    train_theirs,
)

from monosema.coders import SAE, AbsTopK, BatchTopK, SparseCoder, TopK
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.training import AuxK, Matryoshka, Trainer

K, WIDTHS, K_AUX, ALPHA, RATE = 5, (10, 25, D_SAE), D_IN // 2, 0.5, 0.01
"""``K_AUX`` and ``RATE`` are sae-lens' own: half the width, and ``topk_threshold_lr``."""
THERE: dict[str, Any] = {"lr": 3e-3, "lr_warm_up_steps": 3, "dead_feature_window": DEAD_STEPS}
HERE: dict[str, Any] = {
    **SAELENS,
    "lr": 3e-3,
    "warmup_fraction": 3 / N_STEPS,
    "revive": AuxK(coefficient=ALPHA, k=K_AUX, dead_after_tokens=(DEAD_STEPS + 1) * N_TOKENS, straight_through=False),
}
TERMS = {"loss": "loss", "mse_loss": "mse", "auxiliary_reconstruction_loss": "auxk"}


@dataclass(frozen=True)
class Case:
    """One architecture of sae-lens, and ours."""

    architecture: str
    activation: type[TopK] | type[AbsTopK] | type[BatchTopK]
    matryoshka: bool = False

    def both(
        self,
        peer: Peer,
        folder: Path,
        weights: dict[str, Tensor],
        batches: Tensor,
        *,
        rescale: bool,
        dead: Tensor | None = DEAD,
        k: float = K,
        run: dict[str, Any] | None = None,
    ) -> tuple[Run, Run, Trainer]:
        """Their run and ours; their reconstruction losses of the levels are summed as ``mse_loss``."""
        options = {"d_in": D_IN, "d_sae": D_SAE, "k": k, "aux_loss_coefficient": ALPHA}
        options |= {"rescale_acts_by_decoder_norm": rescale}
        if self.matryoshka:
            options |= {"matryoshka_widths": list(WIDTHS)}
        theirs = train_theirs(
            peer,
            folder,
            weights,
            batches,
            architecture=self.architecture,
            options=options,
            run={**THERE, **(run or {})} if len(batches) > 1 else {"lr": 1e-3, "dead_feature_window": DEAD_STEPS},
            dead_steps=None if dead is None else LONG_AGO,
            **({} if dead is None else {"dead": dead}),
        )
        for losses in theirs.losses:
            losses["mse_loss"] += sum(losses.pop(f"inner_mse_loss_{m}") for m in WIDTHS[:-1]) if self.matryoshka else 0
        levels = Matryoshka(widths=WIDTHS) if self.matryoshka else None
        coder = self.coder(weights, rescale=rescale, k=k)
        ours, trainer = train_ours(coder, {**HERE, "levels": levels, **(run or {})}, batches, dead)
        return theirs, ours, trainer

    def coder(self, weights: dict[str, Tensor], *, rescale: bool, k: float = K) -> SparseCoder:
        """Ours before training."""
        activation = self.activation(k=k, weight_by_decoder_norm=rescale, threshold_rate=RATE)
        dtype = str(weights["W_dec"].dtype).removeprefix("torch.")
        return put(SAE(D_IN, D_SAE, activation=activation, dtype=dtype), weights)


CASES = {
    "topk": Case("topk", TopK),
    "abstopk": Case("abstopk", AbsTopK),
    "batchtopk": Case("batchtopk", BatchTopK),
    "matryoshka_batchtopk": Case("matryoshka_batchtopk", BatchTopK, matryoshka=True),
}


def given(name: str, dtype: torch.dtype, n_steps: int) -> tuple[dict[str, Tensor], Tensor]:
    """Weights with dead latents, and batches; half of the pre-activations are negative where signs do not matter."""
    weights = random_weights(dtype, dead="positive")
    if name == "abstopk":
        weights["W_enc"][:, ::2] *= -1
        weights["b_enc"][::2] *= -1
    return weights, random_batches(dtype, n_steps)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_one_step_in_float32(saelens: Peer, tmp_path: Path, name: str, rescale: bool):
    theirs, ours, _ = CASES[name].both(saelens, tmp_path, *given(name, torch.float32, 1), rescale=rescale)
    assert_same_losses(theirs.losses, ours.losses, TERMS, FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_same_latents_are_chosen(saelens: Peer, tmp_path: Path, name: str, rescale: bool):
    """By activation or, with ``rescale_acts_by_decoder_norm``, by what it adds, which is what sae-lens then keeps."""
    weights, batches = given(name, torch.float32, 1)
    theirs, _, _ = CASES[name].both(saelens, tmp_path, weights, batches, rescale=rescale)
    chosen = {}
    for by_norm in (False, True):
        coder = CASES[name].coder(weights, rescale=by_norm)
        with torch.no_grad():
            chosen[by_norm] = coder.encode_select(batches[0]).latents
            output = coder.decode(chosen[by_norm])
        if by_norm == rescale:
            assert_close(theirs.state["first_output"], output, FLOAT32, "output")
    activations = theirs.state["first_activations"]
    ours, others = chosen[rescale].to_dense(), chosen[not rescale].to_dense()
    assert torch.equal(activations != 0, ours != 0)
    assert_close(activations, ours * weights["W_dec"].norm(dim=1) if rescale else ours, FLOAT32, "activations")
    assert ((ours != 0) != (others != 0)).sum() > N_TOKENS


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_twelve_steps_in_float64(saelens: Peer, tmp_path: Path, name: str, rescale: bool):
    theirs, ours, trainer = CASES[name].both(saelens, tmp_path, *given(name, torch.float64, N_STEPS), rescale=rescale)
    assert_same_losses(theirs.losses, ours.losses, TERMS, FLOAT64)
    assert_same_tensors(theirs.weights, ours.weights, FLOAT64)
    since = theirs.state["since_fired"] * N_TOKENS  # they count steps, we count tokens
    assert trainer.statistics.tokens_since_fired.tolist() == since.long().tolist()
    assert_close(theirs.state["log_sparsity"], trainer.statistics.log10_density(), FLOAT32)
    if CASES[name].activation is BatchTopK:
        activation = trainer.coder.parts[0].coder.activation
        assert isinstance(activation, FixedCountActivation)
        assert float(activation.running.total) == pytest.approx(float(theirs.state["threshold"]), rel=FLOAT64)


@pytest.mark.parametrize("name", CASES)
def test_without_dead_latents(saelens: Peer, tmp_path: Path, name: str):
    weights, batches = random_weights(torch.float32), random_batches(torch.float32, 1)
    theirs, ours, _ = CASES[name].both(saelens, tmp_path, weights, batches, rescale=True, dead=None)
    assert theirs.losses[0].pop("auxiliary_reconstruction_loss") == 0
    assert_same_losses(theirs.losses, ours.losses, {"loss": "loss", "mse_loss": "mse"}, FLOAT32)
    assert_same_tensors(theirs.gradients, ours.gradients, FLOAT32)


@pytest.mark.parametrize("n_dead", [3, K_AUX, 15])
def test_their_auxk_shrinks_with_few_dead_latents(saelens: Peer, tmp_path: Path, n_dead: int):
    """sae-lens 6.54.12 multiplies the term by ``min(1, n_dead / k_aux)``; ours is the paper's (arXiv 2406.04093)."""
    weights, batches = random_weights(torch.float32, dead="positive"), random_batches(torch.float32, 1)
    dead = torch.arange(D_SAE) >= D_SAE - n_dead
    theirs, ours, _ = CASES["topk"].both(saelens, tmp_path, weights, batches, rescale=False, dead=dead)
    factor = min(1.0, n_dead / K_AUX)
    assert theirs.losses[0]["auxiliary_reconstruction_loss"] == pytest.approx(factor * ours.losses[0]["auxk"], rel=1e-5)
    pre, error = forward(weights, batches[0])
    assert ours.losses[0]["auxk"] == pytest.approx(auxk(pre.clamp(min=0), error, dead, weights["W_dec"]), rel=1e-5)


def test_their_auxk_takes_negative_pre_activations(saelens: Peer, tmp_path: Path):
    """sae-lens 6.54.12 decodes dead latents at negative values too; ours, as all other latents, at positive ones."""
    weights, batches = random_weights(torch.float32, dead="positive"), random_batches(torch.float32, 1)
    weights["W_enc"][:, DEAD] *= 20  # now as likely negative as positive
    weights["b_enc"][DEAD] = -3.0
    theirs, ours, _ = CASES["topk"].both(saelens, tmp_path, weights, batches, rescale=False)
    pre, error = forward(weights, batches[0])
    assert (pre[:, DEAD].topk(K_AUX).values < 0).any() and (pre[:, DEAD] > 0).any()
    there, here = auxk(pre, error, DEAD, weights["W_dec"]), auxk(pre.clamp(min=0), error, DEAD, weights["W_dec"])
    assert abs(there - here) > 0.01 * here
    assert theirs.losses[0]["auxiliary_reconstruction_loss"] == pytest.approx(there, rel=1e-5)
    assert ours.losses[0]["auxk"] == pytest.approx(here, rel=1e-5)


def test_their_threshold_starts_at_zero_and_ours_is_a_mean_from_the_first_step(saelens: Peer, tmp_path: Path):
    """sae-lens 6.54.12 leaves ``(1 - r)^n`` of its starting value 0 in the mean; ours divides it out."""
    weights, batches = random_weights(torch.float64), random_batches(torch.float64, N_STEPS)
    still = {"lr": 1e-15}
    theirs, _, trainer = CASES["batchtopk"].both(
        saelens, tmp_path, weights, batches, rescale=True, dead=None, run=still
    )
    least = [
        (forward(weights, x)[0] * weights["W_dec"].norm(dim=1)).flatten().topk(K * N_TOKENS).values[-1] for x in batches
    ]
    shares = torch.tensor([RATE * (1 - RATE) ** (N_STEPS - 1 - n) for n in range(N_STEPS)], dtype=torch.float64)
    total = float((shares * torch.stack(least)).sum())
    activation = trainer.coder.parts[0].coder.activation
    assert isinstance(activation, FixedCountActivation)
    assert float(theirs.state["threshold"]) == pytest.approx(total, rel=FLOAT64)
    assert activation.threshold == pytest.approx(total / float(shares.sum()), rel=FLOAT64)
    assert activation.threshold > 8 * float(theirs.state["threshold"])


def test_a_fractional_k_is_rounded_here_and_cut_there(saelens: Peer, tmp_path: Path):
    weights, batches = random_weights(torch.float32), random_batches(torch.float32, 1)
    k = 2.4
    theirs, _, trainer = CASES["batchtopk"].both(saelens, tmp_path, weights, batches, rescale=True, dead=None, k=k)
    assert int(theirs.state["n_active"]) == int(k * N_TOKENS) == 57
    assert trainer.metrics()["l0"] * N_TOKENS == pytest.approx(round(k * N_TOKENS)) == 58


def forward(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations, and the error of a TopK SAE."""
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    least = pre.topk(K).values[:, -1:]
    return pre, x - (pre.clamp(min=0) * (pre >= least)) @ weights["W_dec"] - weights["b_dec"]


def auxk(activations: Tensor, error: Tensor, dead: Tensor, W_dec: Tensor) -> float:
    """``α · mean ‖e - ê‖²`` with ê the decode of each token's ``K_AUX`` largest activations of dead latents."""
    values, places = activations[:, dead].topk(min(K_AUX, int(dead.sum())))
    decoded = torch.einsum("tk,tkd->td", values, W_dec[dead][places])
    return ALPHA * float((error - decoded).square().sum(1).mean())
