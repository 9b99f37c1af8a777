"""Sparsity losses: values by hand, gradients against autograd on dense formulas."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.coders import SAE, Crosscoder, Gated, JumpReLU, ReLU, SparseCoder, Transcoder
from monosema.training.config import TrainingConfig
from monosema.training.objectives import Objective
from monosema.training.penalties import penalty
from monosema.training.terms import L0, L1, Lp, QuadraticL0, RatioL0, Tanh


def hand_coder(activation):
    """Latents +x, +y, -x, -y; decoder norms 1, 2, 1, 3."""
    coder = SAE(2, 4, activation=activation, b_dec="none", dtype="float64")
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    with torch.no_grad():
        coder.W_enc_rows.copy_(rows)
        coder.W_dec.copy_(rows * torch.tensor([1.0, 2.0, 1.0, 3.0]).unsqueeze(1))
    return coder


X = torch.tensor([[3.0, 4.0], [-1.0, -2.0]], dtype=torch.float64)
"""Activations: token 0 has 3 and 4 on latents 0 and 1, token 1 has 1 and 2 on latents 2 and 3."""


@pytest.mark.parametrize(
    ("loss", "p", "expected"),
    [
        (L1(), 1.0, (3 + 8 + 1 + 6) / 2),
        (L1(weighting="none"), 1.0, (3 + 4 + 1 + 2) / 2),
        (Lp(), 0.5, (3**0.5 + 8**0.5 + 1 + 6**0.5) / 2),
        (Lp(root=True), 0.5, ((3**0.5 + 8**0.5) ** 2 + (1 + 6**0.5) ** 2) / 2),
        (Tanh(scale=0.1), 1.0, sum(torch.tensor([0.3, 0.8, 0.1, 0.6]).double().tanh().tolist()) / 2),
        (L0(), 1.0, 2.0),
        (QuadraticL0(target=4.0), 1.0, 2 / 4 * (2 - 4) ** 2),
        (RatioL0(target=4.0), 1.0, (2 / 4 - 1) ** 2),
    ],
)
def test_values_by_hand(loss, p, expected):
    coder = hand_coder(ReLU())
    found = penalty(coder, coder.encode_select(X, window=0.1), loss, 0.7, p)
    assert float(found.value) == pytest.approx(expected)


def test_losses_on_l0_by_hand():
    coder = hand_coder(JumpReLU(init_threshold=2.5, bandwidth=2.0))
    encoding = coder.encode_select(X)
    # active: 3 and 4 of token 0; near 2.5 within 1: the 3, and the 2 of token 1
    assert encoding.selection.near.indices.tolist() == [0, 3]
    for loss, expected in (
        (L0(), [0.5 / 2, 0.5 / 2]),
        (QuadraticL0(target=4.0), [0.5 * (2 - 4) / 2, 0.5 * (0 - 4) / 2]),
        (RatioL0(target=4.0), [0.5 * 2 * (1 / 4 - 1) / (4 * 2)] * 2),
    ):
        found = penalty(coder, encoding, loss, 0.5)
        assert found.gradients.near_step.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "p"), [(L1(), 1.0), (Lp(), 0.6), (Lp(root=True), 0.6), (Tanh(), 1.0), (L1(weighting="none"), 1.0)]
)
@pytest.mark.parametrize("weighting", ["decoder_norm", "concatenated_norm"])
def test_gradients_against_autograd(loss, p, weighting):
    coder = Crosscoder((3, 4), 9, activation=ReLU(), dtype="float64", seed=2)
    with torch.no_grad():
        coder.W_dec.mul_(torch.linspace(0.5, 2, 9).unsqueeze(1))
    if loss.weighting != "none":
        loss = type(loss)(**{**vars(loss), "weighting": weighting})
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    encoding = coder.encode_select(x)
    found = penalty(coder, encoding, loss, 0.3, p)
    f = encoding.latents.to_dense().requires_grad_()
    decoder = coder.W_dec.detach().clone().requires_grad_()
    sites = decoder[:, :3].norm(dim=1) + decoder[:, 3:].norm(dim=1)
    weights = {"decoder_norm": sites, "concatenated_norm": decoder.norm(dim=1), "none": torch.ones(9).double()}
    v = (f * weights[loss.weighting])[f != 0]
    if isinstance(loss, Tanh):
        total = (4 * v).tanh().sum()
    elif isinstance(loss, Lp) and loss.root:
        powers = torch.zeros(5).double().index_add(0, (f != 0).nonzero()[:, 0], v**p)
        total = (powers ** (1 / p)).sum()
    else:
        total = (v**p).sum()
    expected = torch.autograd.grad(0.3 * total / 5, [f, decoder], allow_unused=True)
    torch.testing.assert_close(found.gradients.latents, expected[0][f != 0])
    if loss.weighting == "none":
        assert found.gradients.decoder_scale is None
    else:
        widths = coder.config.write_widths if found.gradients.decoder_scale.shape[1] > 1 else (coder.d_out,)
        scales = found.gradients.decoder_scale.repeat_interleave(torch.tensor(widths), dim=1)
        torch.testing.assert_close(scales * coder.W_dec, expected[1])


def test_the_coefficient_above_which_activations_shrink_to_nothing_by_hand():
    # reconstructions (3, 8) and (-1, -6) miss (0, -4) and (0, 4); the penalty is (3 + 8 + 1 + 6) / 2
    coder = hand_coder(ReLU())
    config = TrainingConfig(tokens=2, sparsity=L1(), decoder="free")
    loss = Objective.of(coder, config, L1()).loss(coder, (coder.encode_select(X),), X, X, 0.5)
    assert loss.largest_coefficient(1.0) == pytest.approx(1.2 * 16 * math.sqrt(110 / 32) / 9)
    assert loss.largest_coefficient(0.5) == pytest.approx(2 * loss.largest_coefficient(1.0))
    gated = hand_coder(Gated())
    with torch.no_grad():
        gated.activation.b_mag.add_(1.0)
    auxiliary = Objective.of(gated, config, L1()).loss(gated, (gated.encode_select(X),), X, X, 0.5)
    assert float(auxiliary.terms["mse"]) != 16
    assert auxiliary.largest_coefficient(1.0) == pytest.approx(2 * 16 * math.sqrt(110 / 32) / 9)
    assert (
        Objective.of(coder, config, None).loss(coder, (coder.encode_select(X),), X, X, 0.0).largest_coefficient(1.0)
        == math.inf
    )


def test_the_coefficient_bound_leaves_a_skip_connection_out():
    # a skip connection that adds nothing to what latents decode to, but is part of the reconstruction
    plain, skipping = (Transcoder(4, 3, 6, skip=skip, dtype="float64", seed=0) for skip in (False, True))
    skipping.load_state_dict(plain.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, width, generator=generator, dtype=torch.float64) for width in (4, 3))
    config = TrainingConfig(tokens=5, sparsity=L1(), decoder="free")

    def bound(coder: SparseCoder, target: torch.Tensor) -> float:
        encoding = coder.encode_select(x)
        return Objective.of(coder, config, L1()).loss(coder, (encoding,), x, target, 0.5).largest_coefficient(1.0)

    with torch.no_grad():
        skipping.W_skip.copy_(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    assert bound(skipping, y + x @ skipping.W_skip.detach()) == pytest.approx(bound(plain, y))
