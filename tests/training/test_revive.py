"""AuxK by hand."""

from __future__ import annotations

import pytest
import torch

from monosema.coders import SAE, ReLU
from monosema.training import AuxK
from monosema.training.revive import auxk_loss, dead_after, default_k


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


def test_the_strongest_positive_dead_latents_decode_to_the_error():
    coder = hand_coder()
    encoding = coder.encode_select(X)
    dead = torch.tensor([True, True, False, False])
    aux = auxk_loss(coder, encoding, E_BO, dead, AuxK(k=1, coefficient=0.5))
    # token 0: latent 1 (pre 4) gives ê = (0, 4), e - ê = (1, -2); token 1 has no positive one: e - ê = (0.5, -1)
    assert float(aux.value) == pytest.approx(0.5 * (1 + 4 + 0.25 + 1) / 2)
    assert aux.entries.latents.to_dense().tolist() == [[0, 4, 0, 0], [0, 0, 0, 0]]
    assert aux.entries.g_out_BO.tolist() == [[-0.5, 1.0], [-0.25, 0.5]]


def test_fewer_dead_latents_than_k_are_all_used():
    coder = hand_coder()
    dead = torch.tensor([True, False, False, True])
    aux = auxk_loss(coder, coder.encode_select(X), E_BO, dead, AuxK(k=3, coefficient=1.0))
    assert aux.entries.latents.to_dense().tolist() == [[3, 0, 0, 0], [0, 0, 0, 2]]
    assert float(aux.value) == pytest.approx((4 + 4 + 0.25 + 1) / 2)


def test_no_dead_latent_no_loss_and_no_positive_one_no_entry():
    coder = hand_coder()
    encoding = coder.encode_select(X[:1])
    assert auxk_loss(coder, encoding, E_BO[:1], torch.zeros(4, dtype=torch.bool), AuxK()) is None
    aux = auxk_loss(coder, encoding, E_BO[:1], torch.tensor([False, False, True, True]), AuxK(coefficient=1.0))
    assert aux.entries.latents.nnz == 0
    assert float(aux.value) == pytest.approx(5.0)


def test_defaults_follow_width_and_run_length():
    assert default_k(SAE(12, 16)) == 6
    assert default_k(SAE(1, 16)) == 1
    assert default_k(SAE(2000, 4)) == 512
    assert dead_after(AuxK(), 1000) == 100
    assert dead_after(None, 10**9) == 10_000_000
    assert dead_after(AuxK(dead_after_tokens=7), 1000) == 7
    assert dead_after(AuxK(), 5) == 1
