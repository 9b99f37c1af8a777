"""AuxK by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monosema.coders import SAE, JumpReLU, ReLU, TopK
from monosema.training import AuxK, TrainingConfig
from monosema.training.objectives import Objective, asked
from monosema.training.revive import Dead, dead_after, default_k, revival
from monosema.training.terms import GhostGradients, PreActivationLoss, Resample


def hand_coder():
    """Two dimensions, four latents: +x, +y, -x, -y, no biases."""
    coder = SAE(2, 4, activation=ReLU(), dtype="float64")
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    with torch.no_grad():
        coder.W_enc_rows.copy_(rows)
        coder.W_dec.copy_(rows)
    return coder.requires_grad_(False)


X = torch.tensor([[3.0, 4.0], [-1.0, -2.0]], dtype=torch.float64)
E_BO = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)


def run(coder, encoding, error, dead, policy):
    """The policy on a loss whose error is ``error``."""
    x = encoding.raw_BI
    objective = Objective.of(coder, TrainingConfig(), None)
    batch = objective.batch(coder, [encoding], x, x, 0.0)
    asked(objective.terms, batch)
    return revival(coder.parts[0], encoding, replace(batch, error_BO=error), Dead.of(dead, coder.parts)[0], policy)


def test_the_strongest_positive_dead_latents_decode_to_the_error():
    coder = hand_coder()
    encoding = coder.encode_select(X)
    dead = torch.tensor([True, True, False, False])
    aux = run(coder, encoding, E_BO, dead, AuxK(k=1, coefficient=0.5))
    # token 0: latent 1 (pre 4) gives ê = (0, 4), e - ê = (1, -2); token 1 has no positive one: e - ê = (0.5, -1)
    assert float(aux.value) == pytest.approx(0.5 * (1 + 4 + 0.25 + 1) / 2)
    assert aux.contributions[0].latents.to_dense().tolist() == [[0, 4, 0, 0], [0, 0, 0, 0]]
    assert aux.contributions[0].g_out_BO.tolist() == [[-0.5, 1.0], [-0.25, 0.5]]


@pytest.mark.parametrize(("by_norm", "chosen"), [(False, 1), (True, 0)])
def test_dead_latents_compete_as_the_living_do(by_norm, chosen):
    """Token (3, 4) has 3 on latent 0, whose decoder row has norm 2, and 4 on latent 1."""
    coder = SAE(2, 4, activation=TopK(k=1, weight_by_decoder_norm=by_norm), dtype="float64")
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    with torch.no_grad():
        coder.W_enc_rows.copy_(rows)
        coder.W_dec.copy_(rows * torch.tensor([2.0, 1, 1, 1]).unsqueeze(1))
    dead = torch.tensor([True, True, False, False])
    aux = run(coder, coder.encode_select(X[:1]), E_BO[:1], dead, AuxK(k=1, coefficient=0.5))
    assert aux.contributions[0].latents.indices.tolist() == [chosen]
    assert aux.contributions[0].latents.values.tolist() == [[3.0, 4.0][chosen]]


def test_fewer_dead_latents_than_k_are_all_used():
    coder = hand_coder()
    dead = torch.tensor([True, False, False, True])
    aux = run(coder, coder.encode_select(X), E_BO, dead, AuxK(k=3, coefficient=1.0))
    assert aux.contributions[0].latents.to_dense().tolist() == [[3, 0, 0, 0], [0, 0, 0, 2]]
    assert float(aux.value) == pytest.approx((4 + 4 + 0.25 + 1) / 2)


@pytest.mark.parametrize("straight_through", [True, False])
def test_no_dead_latent_no_loss_and_no_positive_one_no_reconstruction(straight_through):
    coder = hand_coder()
    encoding = coder.encode_select(X[:1])
    policy = AuxK(coefficient=1.0, straight_through=straight_through)
    assert run(coder, encoding, E_BO[:1], torch.zeros(4, dtype=torch.bool), policy) is None
    aux = run(coder, encoding, E_BO[:1], torch.tensor([False, False, True, True]), policy)
    assert aux.contributions[0].latents.values.count_nonzero() == 0
    assert (aux.contributions[0].slope is None) if straight_through else (aux.contributions[0].slope.tolist() == [0, 0])
    assert float(aux.value) == pytest.approx(5.0)


@pytest.mark.parametrize("straight_through", [True, False])
def test_a_latent_below_zero_learns_to_fire_as_if_it_were_above(straight_through):
    """Token (3, 4), error (1, 2), latent 2 of direction (-1, 0) with pre -3: ê = 0, left = (1, 2).

    ∂/∂ê = -2α (1, 2), so its pre-activation gets -2α ⟨(1, 2), (-1, 0)⟩ = 2α, its decoder row (value 0) nothing.
    """
    coder = hand_coder().requires_grad_(True)
    encoding = coder.encode_select(X[:1])
    dead = torch.tensor([False, False, True, False])
    made = run(coder, encoding, E_BO[:1], dead, AuxK(coefficient=0.5, straight_through=straight_through))
    got = coder.backward(encoding, torch.zeros_like(X[:1]), *made.contributions)
    g_pre = 1.0 if straight_through else 0.0
    assert got["b_enc"].tolist() == [0, 0, g_pre, 0]
    assert got["W_enc_rows"].tolist() == [[0, 0], [0, 0], [3 * g_pre, 4 * g_pre], [0, 0]]
    assert got["W_dec"].abs().sum() == 0


def test_defaults_follow_width_and_run_length():
    assert default_k(SAE(12, 16)) == 4
    assert default_k(SAE(768, 16)) == 48
    assert dead_after(AuxK(), 1000) == 100
    assert dead_after(None, 10**9) == 10_000_000
    assert dead_after(AuxK(dead_after_tokens=7), 1000) == 7
    assert dead_after(AuxK(), 5) == 1
    assert dead_after(Resample(every_tokens=100), 1000) == 50
    assert dead_after(Resample(), 1600) == 100


def test_auxk_divided_by_the_spread_of_the_error():
    coder = hand_coder()
    dead = torch.tensor([True, True, False, False])
    aux = run(coder, coder.encode_select(X), E_BO, dead, AuxK(k=1, coefficient=0.5, normalised=True))
    # errors (1, 2) and (0.5, -1), their mean (0.75, 0.5): spread 2 (0.25^2 + 1.5^2) = 4.625
    assert float(aux.value) == pytest.approx(0.5 * (1 + 4 + 0.25 + 1) / 4.625)


def test_ghost_gradients_are_those_of_the_formula():
    coder = hand_coder()
    coder.W_dec.mul_(0.5)  # the reconstruction must have an error
    coder.requires_grad_(True)
    encoding = coder.encode_select(X)
    dead = torch.tensor([True, False, False, True])
    made = run(coder, encoding, E_BO, dead, GhostGradients(coefficient=2.0))
    got = coder.backward(encoding, torch.zeros_like(X), *made.contributions)
    pre = X @ coder.W_enc_rows.T + coder.b_enc
    out = (pre.exp() * dead) @ coder.W_dec
    ratio = (E_BO.norm(dim=1) / (2 * out.norm(dim=1) + 1e-6)).detach().unsqueeze(1)
    ghost = (E_BO - ratio * out).square().sum(1).mean()
    encoding_loss = (X - coder.decode(encoding.latents)).square().sum(1).mean()
    expected = 2.0 * (encoding_loss / (ghost + 1e-6)).detach() * ghost
    assert float(made.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    gradient = torch.autograd.grad(expected, coder.W_dec)[0]
    torch.testing.assert_close(got["W_dec"], gradient)


@pytest.mark.parametrize("dead_only", [False, True])
def test_pre_activation_loss_pushes_all_that_are_below_the_threshold(dead_only):
    coder = SAE(3, 5, activation=JumpReLU(init_threshold=0.4), dtype="float64", seed=3)
    with torch.no_grad():
        coder.W_dec.mul_(torch.linspace(0.5, 2, 5).unsqueeze(1))
    coder.requires_grad_(True)
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dead = torch.tensor([True, False, True, True, False])
    encoding = coder.encode_select(x)
    made = run(coder, encoding, x, dead, PreActivationLoss(coefficient=0.3, dead_only=dead_only))
    pre = (x - coder.b_dec) @ coder.W_enc_rows.T + coder.b_enc
    below = torch.relu(coder.activation.threshold - pre) * coder.W_dec.norm(dim=1)
    expected = 0.3 * (below * dead if dead_only else below).sum() / 7
    assert float(made.value.detach()) == pytest.approx(float(expected.detach()))
    got = coder.backward(encoding, torch.zeros_like(x), *made.contributions)
    names = ["W_enc_rows", "b_enc", "W_dec", "b_dec", "activation.threshold"]
    own = dict(coder.named_parameters())
    for name, gradient in zip(names, torch.autograd.grad(expected, [own[name] for name in names]), strict=True):
        torch.testing.assert_close(got[name] + made.parameters.get(name, 0), gradient)


def test_pre_activation_loss_leaves_decoder_rows_of_norm_one_alone():
    coder = SAE(3, 5, activation=JumpReLU(init_threshold=0.4), decoder_init_norm=1.0, dtype="float64", seed=3)
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    encoding = coder.encode_select(x)
    made = run(coder, encoding, x, torch.ones(5, dtype=torch.bool), PreActivationLoss(coefficient=0.3))
    nothing = torch.zeros_like(x)
    assert coder.backward(encoding, nothing, *made.contributions)["W_dec"].abs().max() > 0.01
    held = coder.backward(encoding, nothing, *made.contributions, unit_norm=True)["W_dec"]
    torch.testing.assert_close(held, torch.zeros_like(held))
