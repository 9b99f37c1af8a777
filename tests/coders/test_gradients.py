"""``SparseCoder.backward`` against autograd on the dense reference, on the sparse and on the dense kernels."""

import pytest
import torch
from coder_cases import ACTIVATIONS, CODERS, D_SAE, DenseForward, dense_forward, make, randn
from torch import Tensor

from monosema.coders import Encoding, Everywhere, ExtraEntries, LatentGradients, Latents, SparseCoder
from monosema.kernels import bags, budget_levels, latents_from_dense, latents_from_mask, prefix_levels

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
    extra = ExtraEntries(latents_from_mask(made.pre_activations_of(encoding, torch.arange(D_SAE)), auxiliary), g_extra)
    near, gate = selection.near, selection.gate
    got = made.backward(
        encoding,
        g_out,
        LatentGradients(
            latents=at(on_latents, selection.latents),
            near=None if near is None else at(on_latents, near),
            near_step=None if near is None else at(on_step, near),
            gate=None if gate is None else at(on_gate, gate),
        ),
        extra,
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


@all_activations
@pytest.mark.parametrize("coder", ["sae", "crosscoder_causal"])
@pytest.mark.parametrize("kind", ["prefixes", "budgets"])
def test_nested_levels(activation: str, coder: str, kind: str, kernels: str) -> None:
    made = make(activation, coder)
    if activation == "jumprelu" and kind == "budgets":
        return  # inactive entries near a threshold belong to the last level, which autograd does not know
    x, g_out = randn(B, made.d_in, seed=1), randn(B, 3, made.d_out, seed=2)
    reference, encoding = dense_forward(made, activation, x), made.encode_select(x)
    f = reference.channels.f
    if kind == "prefixes":
        levels, member = prefix_levels(encoding.latents, (4, 15, D_SAE)), torch.arange(D_SAE).expand_as(f)
        masks = [member < bound for bound in (4, 15, D_SAE)]
    else:
        levels = budget_levels(encoding.latents, (1, 3, 5))
        rank = f.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        masks = [rank < 1, rank < 3, torch.ones_like(rank, dtype=torch.bool)]
    offset = reference.out - f @ reference.leaves["W_dec"]
    dense = torch.stack([(f * mask) @ reference.leaves["W_dec"] + offset for mask in masks], dim=1)
    torch.testing.assert_close(made.decode_levels(levels, x), dense.detach(), rtol=1e-10, atol=1e-10)
    assert_gradients(made.backward(encoding, g_out, levels=levels), reference.gradients((dense * g_out).sum()))


@pytest.mark.parametrize("activation", ["relu", "tanhrelu", "gated"])
def test_a_loss_on_l0_reaches_pre_activations_without_a_learned_threshold(activation: str) -> None:
    made, width = make(activation, "sae"), 0.5
    x = randn(B, made.d_in, seed=1)
    reference, encoding = dense_forward(made, activation, x), made.encode_select(x, window=width)
    selection, on_step = encoding.selection, randn(B, D_SAE, seed=3)
    assert selection.near is not None
    own = LatentGradients(near_step=at(on_step, selection.near), window=width)
    got = made.backward(encoding, torch.zeros_like(x), own)
    gate = reference.pre + reference.leaves["activation.b_gate"] if activation == "gated" else reference.pre
    window = (gate.detach().abs() < width / 2).double() / width
    assert_gradients(got, reference.gradients((gate * window * on_step).sum()))


@all_activations
def test_a_gradient_on_all_entries_but_some(activation: str) -> None:
    made = make(activation, "sae")
    x, g = randn(B, made.d_in, seed=1), randn(D_SAE, seed=2)
    reference, encoding = dense_forward(made, activation, x), made.encode_select(x)
    but = randn(B, D_SAE, seed=3) > 0.7
    entries = latents_from_mask(torch.ones(B, D_SAE).double(), but)
    got = made.backward(encoding, torch.zeros_like(x), Everywhere(g, entries))
    expected = reference.gradients((reference.pre * ~but * g).sum())
    for name in ("W_enc_rows", "b_enc", "b_dec"):
        if name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-9)


def test_a_loss_on_activations_must_reach_the_threshold_of_jumprelu() -> None:
    made = make("jumprelu", "sae")
    encoding = made.encode_select(randn(B, made.d_in, seed=1))
    with pytest.raises(AssertionError, match="near entries"):
        made.backward(
            encoding, randn(B, made.d_out, seed=2), LatentGradients(latents=torch.ones(encoding.latents.nnz).double())
        )


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
