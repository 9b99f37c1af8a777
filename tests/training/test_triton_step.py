"""Whole steps by the Triton programs, interpreted, beside the same steps without them."""

import os

import pytest
import torch
from coder_cases import randn

import monosema as ms
from monosema.kernels import bags, select
from monosema.kernels.precision import Shadows
from monosema.training import Trainer, TrainingConfig, optimizer
from monosema.training.optimizer import CoderOptimizer

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs where programs are interpreted")

BATCH, WIDTH, LATENTS, STEPS = 10, 8, 40, 3


def trained(monkeypatch: pytest.MonkeyPatch, activation: object, on_programs: bool, **options: object) -> Trainer:
    for module in (bags, select, optimizer):
        monkeypatch.setattr(module, "runs_triton", lambda _: on_programs)
    coder = ms.SAE(WIDTH, LATENTS, activation=activation, seed=0)  # type: ignore[arg-type]
    config = TrainingConfig(tokens=STEPS * BATCH, lr=0.01, revive=ms.AuxK(dead_after_tokens=BATCH), **options)  # type: ignore[arg-type]
    trainer = Trainer(coder, config, BATCH)
    for step in range(STEPS):
        trainer.step(randn(BATCH, WIDTH, seed=step).float())
    return trainer


@pytest.mark.parametrize("decoder", ["free", "unit_norm"])
@pytest.mark.parametrize("activation", [ms.TopK(k=4), ms.BatchTopK(k=4), ms.AbsTopK(k=4), ms.JumpReLU()])
def test_programs_train_as_torch_does(monkeypatch: pytest.MonkeyPatch, activation: object, decoder: str) -> None:
    plain = trained(monkeypatch, activation, on_programs=False, decoder=decoder)
    fast = trained(monkeypatch, activation, on_programs=True, decoder=decoder)
    for name, parameter in plain.coder.named_parameters():
        torch.testing.assert_close(dict(fast.coder.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6)
    assert fast.metrics()["l0"] == plain.metrics()["l0"]
    assert torch.equal(fast.statistics.tokens_since_fired, plain.statistics.tokens_since_fired)
    if decoder == "unit_norm":
        norms = fast.coder.parts[0].coder.W_dec.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_programs_resume_with_the_moments_they_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(monkeypatch, ms.TopK(k=4), on_programs=True, epsilon=1e-6)
    tensors, plain = whole.state_dict()
    again = Trainer(ms.SAE(WIDTH, LATENTS, activation=ms.TopK(k=4), seed=1), whole.config, BATCH)
    again.n_steps = whole.n_steps = again.n_main_steps = whole.n_main_steps = STEPS + 1
    again.load_state_dict({key: value.clone() for key, value in tensors.items()}, plain)
    for trainer in (whole, again):
        trainer.step(randn(BATCH, WIDTH, seed=9).float())
    for one, other in zip(whole.coder.parameters(), again.coder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_programs_leave_a_step_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(monkeypatch, ms.TopK(k=4), on_programs=True)
    before = [parameter.clone() for parameter in trainer.coder.parameters()]
    trainer.n_steps = trainer.n_main_steps = STEPS + 1
    trainer.step(torch.full((BATCH, WIDTH), torch.inf))
    for one, other in zip(before, trainer.coder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert int(trainer.first_bad_step) == STEPS


def test_programs_write_the_copies_in_low_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "runs_triton", lambda _: True)
    for width in (5, 33):
        weight, shadows = torch.nn.Parameter(randn(7, width, seed=0).float()), Shadows()
        update = CoderOptimizer({"W": weight}, TrainingConfig(), 10, weight.device, shadows=shadows)
        shadows.of(weight, torch.bfloat16)
        update.step_({"W": randn(7, width, seed=1).float()}, torch.tensor(1.0), 0.1)
        copy = shadows.held(weight)
        assert copy is not None
        torch.testing.assert_close(copy.float(), weight.detach(), rtol=2**-7, atol=0)  # the interpreter truncates
        assert shadows.of(weight, torch.bfloat16) is copy


@pytest.mark.parametrize("width", [5, 300])
@pytest.mark.parametrize("widest", [16, 4096])
def test_programs_update_rows_wider_than_they_are_in_pieces(
    monkeypatch: pytest.MonkeyPatch, width: int, widest: int
) -> None:
    from monosema.kernels import triton_adam

    monkeypatch.setattr(triton_adam, "_WIDEST", widest)
    results = []
    for on_programs in (True, False):
        monkeypatch.setattr(optimizer, "runs_triton", lambda _, on=on_programs: on)
        weight = torch.nn.functional.normalize(randn(6, width, seed=0).float())
        update = CoderOptimizer({"W": torch.nn.Parameter(weight)}, TrainingConfig(), 10, weight.device)
        parameter = update._parameters["W"]
        for step in range(3):
            gradient = randn(6, width, seed=step + 1).float()
            if on_programs:
                update.step_({"W": gradient}, torch.tensor(1.0), 0.1, ["W"])
            else:
                old = parameter.detach()
                gradient = gradient - (gradient * old).sum(1, keepdim=True) * old
                update.step_({"W": gradient}, torch.tensor(1.0), 0.1)
                with torch.no_grad():
                    parameter.div_(parameter.norm(dim=1, keepdim=True))
        results.append(parameter.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
