"""Against dictionary-learning 0.1.0: the JumpReLU gradient that is half of what it should be there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peer import Peer
from safetensors.torch import load_file, save_file

from monosema.coders import SAE, JumpReLU
from monosema.training import L0
from monosema.training.penalties import penalty


def test_version(dictionary_learning: Peer):
    assert dictionary_learning.call("version")["dictionary_learning"] == "0.1.0"


def test_jumprelu_l0_gradient_is_whole_here_and_half_there(dictionary_learning: Peer, tmp_path: Path):
    """The step's estimate counts entries in a window around θ, on either side of it.

    The peer applies it to activations after the jump, which are zero below θ, and so loses the lower half
    (github.com/saprmarks/dictionary_learning/issues/55). Pre-activations here lie symmetrically around θ, ``n_near`` of
    them inside the window: ``∂L0/∂θ = -n_near / (ε · n_tokens)``.
    """
    n_tokens, n_near, width, bandwidth = 400, 100, 6, 0.125
    near = (torch.arange(n_near) + 0.5) / n_near - 0.5  # inside (-1/2, 1/2), symmetric
    far = torch.cat([torch.full(((n_tokens - n_near) // 2,), side) for side in (-1.0, 1.0)])
    threshold = torch.linspace(0.5, 1.5, width)
    x = threshold + bandwidth * torch.cat([near, far]).unsqueeze(1)
    expected = torch.full((width,), -n_near / (bandwidth * n_tokens))

    tensors, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"W_enc": torch.eye(width), "threshold": threshold, "x": x}, tensors)
    dictionary_learning.call("jumprelu_l0_gradient", tensors=str(tensors), out=str(out), bandwidth=bandwidth)
    theirs = load_file(out)["gradient"]

    sae = SAE(width, width, activation=JumpReLU(bandwidth=bandwidth), b_dec="output")
    with torch.no_grad():
        sae.W_enc_rows.copy_(torch.eye(width))
        sae.W_dec.zero_()
        sae.activation.get_parameter("threshold").copy_(threshold)
    encoding = sae.encode_select(x)
    found = penalty(sae, encoding, L0(coefficient=1.0), 1.0)
    ours = sae.backward(encoding, torch.zeros_like(x), found.gradients)["activation.threshold"]

    assert ours == pytest.approx(expected, rel=1e-5)
    assert theirs == pytest.approx(expected / 2, rel=1e-5)
