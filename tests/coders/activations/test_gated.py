"""Gated: a hand-computed case."""

import math

import pytest
import torch

from monosema.coders import SAE, Gated, LatentGradients, SparseCoder


def hand_case() -> SparseCoder:
    # SAELens tests/saes/test_gated_sae.py
    coder = SAE(2, 3, activation=Gated(), dtype="float64")
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.fill_(1.0 if name.startswith("W_") else 0.0)
        coder.activation.b_gate.copy_(torch.tensor([-2.0, 0.0, 1.0]))
        coder.activation.r_mag.copy_(torch.tensor([1.0, 2.0, 3.0]))
        coder.activation.b_mag.fill_(1.0)
    return coder


X = torch.full((1, 2), 0.3, dtype=torch.float64)


def test_forward_of_a_hand_computed_case() -> None:
    coder = hand_case()
    assert coder.encode(X)[0].tolist() == pytest.approx([0.0, 5.4334, 13.0513], abs=1e-4)
    assert coder(X)[0].tolist() == pytest.approx([18.4848, 18.4848], abs=1e-4)


def test_it_has_no_encoder_bias() -> None:
    assert hand_case().b_enc is None
    assert "b_enc" not in hand_case().state_dict()


def test_gradients_of_a_hand_computed_case() -> None:
    # π = (-1.4, 0.6, 1.6); the output gradient 1 on one coordinate reaches f as 1, the gates get (7, 9) where open
    coder = hand_case()
    encoding = coder.encode_select(X)
    gate = encoding.selection.gate
    assert gate is not None
    assert gate.indices.tolist() == [1, 2]
    assert gate.values.tolist() == pytest.approx([0.6, 1.6])
    g_gate = torch.tensor([7.0, 9.0], dtype=torch.float64)
    gradients = coder.backward(encoding, torch.tensor([[1.0, 0.0]], dtype=torch.float64), LatentGradients(gate=g_gate))
    assert gradients["activation.b_mag"].tolist() == [0.0, 1.0, 1.0]
    assert gradients["activation.b_gate"].tolist() == [0.0, 7.0, 9.0]
    assert gradients["activation.r_mag"].tolist() == pytest.approx([0.0, 0.6 * math.exp(2), 0.6 * math.exp(3)])
    rows = [0.0, 0.3 * (math.exp(2) + 7), 0.3 * (math.exp(3) + 9)]
    assert gradients["W_enc_rows"][:, 0].tolist() == pytest.approx(rows)


def test_an_open_gate_with_a_negative_magnitude_is_inactive_but_its_gate_still_learns() -> None:
    coder = hand_case()
    with torch.no_grad():
        coder.activation.b_mag.fill_(-100.0)
    encoding = coder.encode_select(X)
    assert encoding.latents.nnz == 0
    assert encoding.selection.gate is not None
    assert encoding.selection.gate.nnz == 2
