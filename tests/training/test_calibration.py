"""The threshold set after the last step, by hand and on every dictionary that has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import monosema as ms
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.training import Trainer
from monosema.training.calibration import calibrate_

D, F, B = 6, 24, 64


def rows(n: int, width: int = D, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def by_hand() -> ms.SparseCoder:
    """Pre-activations are the three inputs; the decoder rows have norms 1, 2 and 1."""
    coder = ms.SAE(3, 3, activation=ms.BatchTopK(k=1.5, weight_by_decoder_norm=False), b_dec="output")
    with torch.no_grad():
        coder.W_enc_rows.copy_(torch.eye(3))
        coder.W_dec.copy_(torch.diag(torch.tensor([1.0, 2.0, 1.0])))
    return coder


X = torch.tensor([[5.0, 1.0, -9.0], [3.0, 2.0, 0.5], [0.25, -1.0, 4.0], [0.0, 0.0, 6.0]])


def test_it_is_the_score_that_k_a_token_reach() -> None:
    coder = by_hand()
    calibrate_(coder, X)  # 1.5 * 4 = 6 scores: 6 5 4 3 2 1 | 0.5 0.25
    assert coder.activation.threshold == 1.0
    assert (coder.encode(X) > 1).sum() == 5  # above the threshold: one entry less


def test_norms_weight_the_scores_where_latents_compete_by_them() -> None:
    coder = by_hand()
    coder.activation.weights_by_decoder_norm = True
    calibrate_(coder, X)  # the second input counts twice: 6 5 4 4 3 2 | 0.5 0.25
    assert coder.activation.threshold == 2.0


def test_magnitudes_count_for_abs_top_k() -> None:
    coder = ms.SAE(
        3, 3, activation=ms.AbsTopK(k=1, inference="threshold", weight_by_decoder_norm=False), b_dec="output"
    )
    with torch.no_grad():
        coder.W_enc_rows.copy_(torch.eye(3))
    calibrate_(coder, X)  # 4 magnitudes: 9 6 5 4
    assert coder.activation.threshold == 4.0


def test_fewer_positive_scores_than_wanted_give_zero() -> None:
    coder = by_hand()
    calibrate_(coder, -X.abs())
    assert coder.activation.threshold == 0.0


def test_blocks_of_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    coder = by_hand()
    monkeypatch.setattr("monosema.training.calibration._AT_A_TIME", 3)
    calibrate_(coder, X)
    assert coder.activation.threshold == 1.0


@pytest.mark.parametrize("activation", [ms.TopK(k=3), ms.ReLU(), ms.BatchTopK(k=3, inference="topk")])
def test_what_infers_without_a_threshold_stays(activation: Any) -> None:
    coder = ms.SAE(D, F, activation=activation)
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    calibrate_(coder, rows(B))
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())


SETUPS: dict[str, Any] = {
    "BatchTopK": (lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=3)), {}),
    "fraction": (lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=2.5)), {"decoder": "unit_norm"}),
    "TopK": (lambda: ms.SAE(D, F, activation=ms.TopK(k=3, inference="threshold")), {}),
    "Matryoshka": (lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=3)), {"levels": ms.Matryoshka(widths=(8, 24))}),
    "hierarchical": (
        lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=3)),
        {"levels": ms.HierarchicalTopK(budgets=(1, 3)), "revive": None},
    ),
    "k_start": (lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=3)), {"k_start": 9, "k_anneal_fraction": 1.0}),
    "constant_norm": (lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=3)), {"input_scaling": "constant_norm"}),
    "whitening": (lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=3)), {"input_scaling": "whitening"}),
    "finetuning": (
        lambda: ms.SAE(D, F, activation=ms.BatchTopK(k=3)),
        {"finetuning": ms.FineTuning(tokens=2 * B, weights="scale")},
    ),
}


@pytest.mark.parametrize("name", SETUPS)
def test_the_dictionary_as_saved_has_k_latents_a_token_on_the_rows(name: str) -> None:
    make, options = SETUPS[name]
    coder, x = make(), 3 * rows(512) + 1
    l0 = {}
    for on in (True, False):
        coder = make()
        trainer = Trainer(coder, ms.TrainingConfig(tokens=5 * B, calibrate_threshold=on, **options), B)
        trainer.calibration_rows = lambda n: x[:n]
        trainer.initialise(x)
        while trainer.step_number < trainer.n_steps:
            trainer.step(x[trainer.step_number * B :][:B])
        latents = trainer.inference_coder().encode_sparse(x)
        l0[on] = float((latents.values != 0).sum()) / len(x)
    k = coder.config.activation.k
    assert abs(l0[True] - k) <= 2.5 / len(x)  # one entry less, and rounding of what is folded
    assert abs(l0[False] - k) > 0.05


def test_each_layer_of_a_stack_has_its_own() -> None:
    stack = ms.CLT([D, D], [D, D], F, activation=ms.BatchTopK(k=2))
    x = rows(512, 2 * D)
    x[:, D:] *= 10
    calibrate_(stack, x)
    found = [part.coder.activation.threshold for part in stack.parts]
    assert found[1] > 5 * found[0] > 0
    for part in stack.parts:
        assert abs(float((part.coder.encode(x[:, part.read]) != 0).sum()) / 512 - 2) <= 1.5 / 512


def test_the_last_step_calibrates_and_no_other() -> None:
    asked: list[int] = []
    coder = ms.SAE(D, F, activation=ms.BatchTopK(k=3))
    trainer = Trainer(coder, ms.TrainingConfig(tokens=3 * B), B)

    def give(n: int) -> Tensor:
        asked.append(trainer.step_number)
        return rows(n)

    trainer.calibration_rows = give
    for number in range(3):
        trainer.step(rows(B, seed=number))
    assert asked == [3]
    assert isinstance(coder.activation, FixedCountActivation) and float(coder.activation.running.weight) == 1


def test_a_run_that_is_not_finite_is_not_calibrated() -> None:
    trainer = Trainer(ms.SAE(D, F, activation=ms.BatchTopK(k=3)), ms.TrainingConfig(tokens=2 * B), B)
    trainer.calibration_rows = rows
    trainer.step(rows(B))
    trainer.step(torch.full((B, D), torch.nan))
    assert 0 < float(trainer.coder.activation.running.weight) < 1
