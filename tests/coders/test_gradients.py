"""``SparseCoder.backward`` against autograd on the dense reference, on the sparse and on the dense kernels."""

import pytest
import torch
from coder_cases import ACTIVATIONS, CODERS, D_SAE, DenseForward, dense_forward, make, randn
from torch import Tensor

from monosema.coders import Encoding, ExtraEntries, Latents, SparseCoder
from monosema.kernels import bags, latents_from_dense, latents_from_mask

B = 19

all_activations = pytest.mark.parametrize("activation", ACTIVATIONS)
all_coders = pytest.mark.parametrize("coder", CODERS)


@pytest.fixture(params=["sparse", "dense"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one of the two paths of the kernels."""
    monkeypatch.setattr(bags, "DENSE_DENSITY", 2.0 if request.param == "sparse" else -1.0)
    return str(request.param)


def at(dense: Tensor, entries: Latents) -> Tensor:
    """Values of ``dense [B, F]`` at the entries of a ``Latents``."""
    return dense[entries.rows(), entries.indices.long()]


def assert_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], *, relative: float = 1e-9) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        assert got[name].dtype == value.dtype, name
        scale = float(value.norm())
        assert float((got[name] - value).norm()) <= relative * max(scale, 1e-3), name


def everything(
    made: SparseCoder, reference: DenseForward, encoding: Encoding, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor]:
    """A loss with every channel the contract has: our gradients, and the loss of the dense reference."""
    rows = encoding.latents.n_tokens
    g_out, g_extra = (randn(rows, made.d_out, seed=seed, dtype=dtype) for seed in (11, 12))
    on_latents, on_step, on_gate = (randn(rows, D_SAE, seed=seed, dtype=dtype) for seed in (13, 14, 15))
    selection = encoding.selection
    # AuxK trains some latents that were not selected, at their pre-activations
    unselected = selection.latents.to_dense() == 0
    auxiliary = unselected & (randn(rows, D_SAE, seed=16) > 1.0)
    extra = ExtraEntries(latents_from_mask(encoding.pre_BF, auxiliary), g_extra)
    near, gate = selection.near, selection.gate
    got = made.backward(
        encoding,
        g_out,
        g_latents=at(on_latents, selection.latents),
        g_near=None if near is None else at(on_latents, near),
        near_step=None if near is None else at(on_step, near),
        g_gate=None if gate is None else at(on_gate, gate),
        extra=extra,
    )
    loss = (reference.out * g_out).sum() + (reference.channels.f * on_latents).sum()
    loss = loss + ((reference.pre * auxiliary) @ reference.leaves["W_dec"] * g_extra).sum()
    if reference.channels.step is not None:
        loss = loss + (reference.channels.step * on_step).sum()
    if reference.channels.gate is not None:
        loss = loss + (reference.channels.gate * on_gate).sum()
    return got, loss


@all_activations
@all_coders
def test_names_are_those_of_the_parameters(activation: str, coder: str) -> None:
    made = make(activation, coder)
    gradients = made.backward(made.encode_select(randn(B, made.d_in, seed=1)), randn(B, made.d_out, seed=2))
    assert {name: g.shape for name, g in gradients.items()} == {n: p.shape for n, p in made.named_parameters()}


@all_activations
@all_coders
def test_arbitrary_output_gradient(activation: str, coder: str, kernels: str) -> None:
    made = make(activation, coder)
    x, g_out = randn(B, made.d_in, seed=1), randn(B, made.d_out, seed=2)
    reference = dense_forward(made, activation, x)
    expected = reference.gradients((reference.out * g_out).sum())
    assert_gradients(made.backward(made.encode_select(x), g_out), expected)


@all_activations
@all_coders
def test_reconstruction_loss(activation: str, coder: str) -> None:
    made = make(activation, coder)
    x = randn(B, made.d_in, seed=1)
    target = x if made.d_out == made.d_in else randn(B, made.d_out, seed=2)
    reference = dense_forward(made, activation, x)
    expected = reference.gradients((reference.out - target).square().sum(1).mean())
    encoding = made.encode_select(x)
    g_out = 2 / B * (made.decode(encoding.latents, x) - target)
    assert_gradients(made.backward(encoding, g_out), expected)


@all_activations
@all_coders
def test_every_channel_at_once(activation: str, coder: str, kernels: str) -> None:
    made = make(activation, coder)
    x = randn(B, made.d_in, seed=1)
    reference, encoding = dense_forward(made, activation, x), made.encode_select(x)
    got, loss = everything(made, reference, encoding, torch.float64)
    assert_gradients(got, reference.gradients(loss))


@all_activations
@pytest.mark.parametrize("coder", ["sae", "skip_transcoder"])
def test_every_channel_at_once_in_float32(activation: str, coder: str, kernels: str) -> None:
    made = make(activation, coder, dtype="float32")
    x = randn(B, made.d_in, seed=1, dtype=torch.float32)
    reference, encoding = dense_forward(made, activation, x), made.encode_select(x)
    assert torch.equal(encoding.latents.indices, latents_from_dense(reference.channels.f).indices)
    got, loss = everything(made, reference, encoding, torch.float32)
    assert_gradients(got, reference.gradients(loss), relative=1e-5)


@all_activations
@pytest.mark.parametrize("coder", ["transcoder", "skip_transcoder"])
def test_decodes_summed_before_the_loss(activation: str, coder: str) -> None:
    """Cross-layer transcoder: one loss on the sum of two coders' writes; each gets the same output gradient."""
    first, second = make(activation, coder, seed=0), make(activation, coder, seed=1)
    x1, x2, target = randn(B, first.d_in, seed=1), randn(B, first.d_in, seed=2), randn(B, first.d_out, seed=3)
    dense = [dense_forward(first, activation, x1), dense_forward(second, activation, x2)]
    loss = (dense[0].out + dense[1].out - target).square().sum(1).mean()
    encodings = [first.encode_select(x1), second.encode_select(x2)]
    total = first.decode(encodings[0].latents, x1) + second.decode(encodings[1].latents, x2)
    g_out = 2 / B * (total - target)
    assert_gradients(first.backward(encodings[0], g_out), dense[0].gradients(loss))
    assert_gradients(second.backward(encodings[1], g_out), dense[1].gradients(loss))


def test_a_loss_on_activations_must_reach_the_threshold_of_jumprelu() -> None:
    made = make("jumprelu", "sae")
    encoding = made.encode_select(randn(B, made.d_in, seed=1))
    with pytest.raises(AssertionError, match="must give g_near"):
        made.backward(encoding, randn(B, made.d_out, seed=2), g_latents=torch.ones(encoding.latents.nnz).double())


def test_backward_leaves_parameters_and_encoding_alone() -> None:
    made = make("gated", "sae")
    encoding = made.encode_select(randn(B, made.d_in, seed=1))
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    values, g_out = encoding.latents.values.clone(), randn(B, made.d_out, seed=2)
    kept = g_out.clone()
    made.backward(encoding, g_out)
    assert torch.equal(g_out, kept)
    assert torch.equal(encoding.latents.values, values)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in made.named_parameters())
