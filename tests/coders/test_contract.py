"""The contract every coder keeps, whatever its activation: one table (``coder_cases``), one suite."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from coder_cases import (
    ACTIVATIONS,
    CODERS,
    D_IN,
    D_SAE,
    assert_canonical,
    dense_forward,
    dense_pre,
    leaves_of,
    make,
    randn,
    randomise_,
)
from torch import Tensor

from monosema.coders import SparseCoder
from monosema.core.errors import ShapeError
from monosema.kernels import Latents

LEADING_SHAPES = [(), (7,), (2, 3), (2, 0, 3)]

all_activations = pytest.mark.parametrize("activation", ACTIVATIONS)
all_coders = pytest.mark.parametrize("coder", CODERS)
two_coders = pytest.mark.parametrize("coder", ["sae", "skip_transcoder"])
"""For what the encoder alone decides: with and without b_dec at the input."""


def x_of(coder: SparseCoder, *leading: int, seed: int = 7) -> Tensor:
    return randn(*leading, coder.d_in, seed=seed, dtype=coder.dtype)


def empty_biases_(coder: SparseCoder, value: float) -> SparseCoder:
    """Set the biases that decide whether a latent is active; where magnitude decides, none is with nothing to read."""
    with torch.no_grad():
        if value < -50 and getattr(coder.activation, "signed", False):
            coder.W_enc_rows.zero_()
            value = 0.0
        for name, parameter in coder.named_parameters():
            if name in ("b_enc", "activation.b_gate", "activation.b_mag"):
                parameter.fill_(value)
    return coder


@all_activations
@all_coders
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_shapes_and_dtypes(activation: str, coder: str, dtype: str) -> None:
    made = make(activation, coder, dtype=dtype)
    expected = getattr(torch, dtype)
    assert made.dtype == expected
    for leading in LEADING_SHAPES:
        x = x_of(made, *leading)
        dense, latents = made.encode(x), made.encode_sparse(x)
        assert dense.shape == (*leading, D_SAE)
        assert latents.leading_shape == leading
        assert latents.n_tokens == math.prod(leading)
        for y in (made.decode(dense, x), made.decode(latents, x), made(x), torch.no_grad()(made)(x)):
            assert y.shape == (*leading, made.d_out)
            assert y.dtype == expected
            assert bool(y.isfinite().all())
        assert dense.dtype == latents.values.dtype == expected


@all_activations
@two_coders
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dense_and_sparse_encodings_are_equal_bit_for_bit(activation: str, coder: str, dtype: str) -> None:
    made = make(activation, coder, dtype=dtype)
    x = x_of(made, 3, 5)
    latents = made.encode_sparse(x)
    assert latents.nnz > 0
    dense = made.encode(x)
    assert torch.equal(dense, latents.to_dense())
    for zeros in (dense[dense == 0], latents.to_dense()[dense == 0]):
        assert not bool(zeros.signbit().any())  # what is inactive is 0, never -0


@all_activations
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_latents_are_canonical_under_both_rules(activation: str, dtype: str) -> None:
    made = make(activation, "sae", dtype=dtype)
    x = x_of(made, 4, 6)
    assert_canonical(made.encode_sparse(x))
    selection = made.encode_select(x.flatten(0, 1)).selection
    assert_canonical(selection.latents)
    if selection.gate is not None:
        assert_canonical(selection.gate)
    if selection.near is not None:
        assert_canonical(selection.near)


@all_activations
@two_coders
def test_inference_rule_is_the_dense_formula(activation: str, coder: str) -> None:
    made = make(activation, coder)
    x = x_of(made, 23)
    parameters = leaves_of(made)
    expected = ACTIVATIONS[activation].infer(dense_pre(made, parameters, x), parameters)
    torch.testing.assert_close(made.encode(x), expected, rtol=1e-12, atol=1e-12)


@all_activations
@all_coders
def test_training_rule_and_output_are_the_dense_formula(activation: str, coder: str) -> None:
    made = make(activation, coder)
    x = x_of(made, 23)
    reference = dense_forward(made, activation, x)
    encoding = made.encode_select(x)
    torch.testing.assert_close(encoding.latents.to_dense(), reference.channels.f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.decode(encoding.latents, x), reference.out, rtol=1e-12, atol=1e-12)


@all_activations
@all_coders
def test_decode_is_the_same_from_latents_and_from_dense(activation: str, coder: str) -> None:
    made = make(activation, coder)
    x = x_of(made, 2, 9)
    expected = made.decode(made.encode(x), x)
    torch.testing.assert_close(made.decode(made.encode_sparse(x), x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.no_grad()(made)(x), expected, rtol=1e-12, atol=1e-12)


@all_activations
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 31])
def test_number_of_active_latents_is_bounded(activation: str, n_tokens: int) -> None:
    bound = ACTIVATIONS[activation].max_entries
    if bound is None:
        return  # no bound is promised by this activation
    made = empty_biases_(make(activation, "sae"), 5.0)  # everything positive: the bound is reached
    assert made.encode_sparse(x_of(made, n_tokens)).nnz == bound(n_tokens)
    made = empty_biases_(made, -2.5)  # few positive
    assert made.encode_sparse(x_of(made, n_tokens)).nnz < bound(n_tokens)


@all_activations
@two_coders
def test_autograd_through_encode_gives_the_input_gradient(activation: str, coder: str) -> None:
    made = make(activation, coder)
    ours, theirs = (x_of(made, 11).requires_grad_() for _ in range(2))
    weights = randn(11, D_SAE, seed=3)
    parameters = leaves_of(made)
    dense = ACTIVATIONS[activation].infer(dense_pre(made, parameters, theirs), parameters)
    (got,) = torch.autograd.grad((made.encode(ours) * weights).sum(), ours)
    (expected,) = torch.autograd.grad((dense * weights).sum(), theirs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@all_activations
@all_coders
def test_nothing_active(activation: str, coder: str) -> None:
    made = empty_biases_(make(activation, coder), -100.0)
    x = x_of(made, 6)
    encoding = made.encode_select(x)
    assert encoding.latents.nnz == made.encode_sparse(x).nnz == 0
    assert not made.encode(x).any()
    expected = torch.zeros(6, made.d_out, dtype=made.dtype)
    if made.b_dec is not None:
        expected = expected + made.b_dec
    if made.W_skip is not None:
        expected = expected + x @ made.W_skip
    torch.testing.assert_close(made(x), expected)
    gradients = made.backward(encoding, randn(6, made.d_out, seed=1))
    assert gradients.keys() == dict(made.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert bool(gradient.any()) == (name in ("b_dec", "W_skip")), name


@all_activations
@all_coders
@pytest.mark.parametrize("n_tokens", [0, 1])
def test_no_token_and_one_token(activation: str, coder: str, n_tokens: int) -> None:
    made = make(activation, coder)
    x = x_of(made, n_tokens)
    encoding = made.encode_select(x)
    assert encoding.latents.n_tokens == n_tokens
    gradients = made.backward(encoding, randn(n_tokens, made.d_out, seed=1))
    for name, parameter in made.named_parameters():
        assert gradients[name].shape == parameter.shape
        assert n_tokens > 0 or not gradients[name].any()


@all_activations
@two_coders
def test_one_latent(activation: str, coder: str) -> None:
    config = ACTIVATIONS[activation].config()
    if hasattr(config, "k"):
        config = replace(config, k=1)
    made = randomise_(CODERS[coder](config, "float64", 1))
    x = x_of(made, 8)
    assert_canonical(made.encode_sparse(x))
    assert torch.equal(made.encode(x), made.encode_sparse(x).to_dense())
    gradients = made.backward(made.encode_select(x), randn(8, made.d_out, seed=1))
    assert {name: g.shape for name, g in gradients.items()} == {n: p.shape for n, p in made.named_parameters()}


@pytest.mark.parametrize("activation", [name for name, case in ACTIVATIONS.items() if case.max_entries])
def test_k_equal_to_the_number_of_latents_keeps_every_positive_one(activation: str) -> None:
    config = ACTIVATIONS[activation].config()
    made = randomise_(CODERS["sae"](replace(config, k=D_SAE), "float64", D_SAE))
    if activation.startswith("batchtopk"):
        made.activation.set_threshold(0.0)
    x = x_of(made, 8)
    inner = x - made.b_dec
    torch.testing.assert_close(made.encode(x), torch.relu(inner @ made.W_enc + made.b_enc), rtol=1e-12, atol=1e-12)


@all_activations
def test_equal_latents_tie_to_the_lower_one(activation: str) -> None:
    """All numbers are small integers or halves, so every sum is exact and equal latents are equal on any processor."""
    made = make(activation, "sae")
    with torch.no_grad():  # latents i and i + 20 are the same
        for name, parameter in made.named_parameters():
            if name == "activation.r_mag":
                parameter.zero_()  # exp(0) is exact
            elif name == "activation.threshold":
                parameter.fill_(0.5)
            else:
                parameter.copy_((3 * parameter).round().clamp(-3, 3))
            if parameter.shape[0] == D_SAE and name != "W_dec":
                parameter[20:] = parameter[:20]
        made.W_dec.zero_()
        made.W_dec[:, :4] = 1.0  # every norm is 2
    x = (2 * x_of(made, 9)).round()
    dense, chosen = made.encode(x), made.encode_select(x).latents.to_dense()
    for f in (dense, chosen):
        assert bool((f[:, :20].abs() >= f[:, 20:].abs()).all())  # never the higher one alone
    if hasattr(made.config.activation, "k"):
        assert bool((chosen[:, :20].abs() > chosen[:, 20:].abs()).any()), "no tie was decided"
    assert torch.equal(dense, made.encode_sparse(x).to_dense())
    torch.testing.assert_close(chosen, dense_forward(made, activation, x).channels.f, rtol=1e-15, atol=0)


@pytest.mark.parametrize("activation", [name for name, case in ACTIVATIONS.items() if case.max_entries])
def test_all_pre_activations_equal_takes_the_first(activation: str) -> None:
    made = make(activation, "sae")
    with torch.no_grad():
        made.W_enc_rows.zero_()
        made.b_enc.fill_(2.0)
        made.W_dec.copy_(made.W_dec[:1].expand(D_SAE, -1))
    x = x_of(made, 4)
    bound = ACTIVATIONS[activation].max_entries
    assert bound is not None
    expected = torch.zeros(4, D_SAE, dtype=torch.float64)
    if activation.startswith("topk"):
        expected[:, :3] = 2.0
    else:  # ties in the batch: lower token first, whose row is as wide as the budget
        expected.view(-1)[: bound(4)] = 2.0
    assert torch.equal(made.encode(x), expected)


@all_activations
@two_coders
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input_ends_with_consistent_shapes(activation: str, coder: str, bad: float) -> None:
    """NaN is never active; the dense encoding and the output gradient carry it on, so that a step is skipped."""
    made = make(activation, coder)
    clean = x_of(made, 5)
    x = clean.clone()
    x[2] = bad
    for _ in range(2):  # the second time with what the first one taught the search
        encoding = made.encode_select(x)
        assert_canonical(encoding.latents)
        assert encoding.latents.n_tokens == 5
        g_out = made.decode(encoding.latents, x) - (x if made.d_out == D_IN else randn(5, made.d_out, seed=2))
        gradients = made.backward(encoding, g_out)
        assert {name: g.shape for name, g in gradients.items()} == {n: p.shape for n, p in made.named_parameters()}
        assert_canonical(made.encode_sparse(x))
        assert made.encode(x).shape == (5, D_SAE)
    if math.isnan(bad):
        assert not encoding.latents.to_dense()[2].any()
        assert not made.encode_sparse(x).to_dense()[2].any()
        assert bool(made.encode(x)[2].isnan().any())
    again = made.encode_select(clean).latents  # nothing is left behind by the bad batch
    assert torch.equal(again.to_dense(), make(activation, coder).encode_select(clean).latents.to_dense())


@all_activations
@two_coders
def test_one_broken_latent_does_not_stop_the_selection(activation: str, coder: str) -> None:
    made = make(activation, coder)
    with torch.no_grad():
        made.W_enc_rows[4] = math.nan
    latents = made.encode_select(x_of(made, 5)).latents
    assert_canonical(latents)
    assert not latents.to_dense()[:, 4].any()


@all_activations
@two_coders
@pytest.mark.parametrize("rows", [9, 4, 1])
def test_tokens_at_a_time_change_nothing(activation: str, coder: str, rows: int) -> None:
    made = make(activation, coder)
    workspace = torch.full((rows, D_SAE), math.nan, dtype=torch.float64)
    for n_tokens, seed in ((9, 1), (6, 2), (0, 3), (9, 4)):
        x, noise = x_of(made, n_tokens, seed=seed), 0.1 * randn(n_tokens, D_SAE, seed=seed)
        parts, whole = (made.encode_select(x, space, window=0.3, noise_BF=noise) for space in (workspace, None))
        if n_tokens > 0:
            assert not workspace[: min(rows, n_tokens)].isnan().any()
        for field in dataclasses.fields(whole.selection):
            got, expected = getattr(parts.selection, field.name), getattr(whole.selection, field.name)
            if isinstance(expected, Latents):
                assert torch.equal(got.crow, expected.crow)
                assert torch.equal(got.indices, expected.indices)
                assert (got.d_sae, got.leading_shape) == (expected.d_sae, expected.leading_shape)
                got, expected = got.values, expected.values
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        columns = torch.arange(D_SAE)[::3]
        entries = parts.latents.to_dense()[:, columns]
        if activation in ("relu", "topk", "batchtopk", "jumprelu"):
            pre = made.pre_activations_of(parts, columns)
            torch.testing.assert_close(pre[entries != 0], entries[entries != 0], rtol=1e-12, atol=1e-12)


@all_activations
@two_coders
def test_same_input_same_bits(activation: str, coder: str) -> None:
    made = make(activation, coder, dtype="float32")
    x, g_out = x_of(made, 33), randn(33, made.d_out, seed=5, dtype=torch.float32)
    runs = [made.backward(made.encode_select(x), g_out) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert torch.equal(made(x), made(x))


@all_activations
@all_coders
def test_input_of_another_dtype_and_with_leading_dimensions_trains_as_well(activation: str, coder: str) -> None:
    made = make(activation, coder, dtype="float32")
    x = x_of(made, 2, 5).bfloat16()
    g_out = randn(10, made.d_out, seed=5, dtype=torch.float32)
    got = made.backward(made.encode_select(x), g_out)
    expected = made.backward(made.encode_select(x.float().reshape(10, D_IN)), g_out)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@all_coders
def test_wrong_shapes_are_refused(coder: str) -> None:
    made = make("relu", coder)
    wrong = torch.zeros(2, D_IN + 1, dtype=torch.float64)
    for call in (made.encode, made.encode_sparse, made.encode_select, made):
        with pytest.raises(ShapeError, match=rf"expected \[..., {D_IN}\], got \[2, {D_IN + 1}\]"):
            call(wrong)
    with pytest.raises(ShapeError, match=f"{D_SAE}"):
        made.decode(torch.zeros(2, D_SAE - 1, dtype=torch.float64))
    if made.W_skip is not None:
        with pytest.raises(ShapeError, match=r"skip connection; pass its input as decode\(latents, x\)"):
            made.decode(torch.zeros(2, D_SAE, dtype=torch.float64))
