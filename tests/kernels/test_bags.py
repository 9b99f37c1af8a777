"""Sparse decoding and gradients against their dense twins, and against hand numbers."""

import pytest
import torch
from coder_cases import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosema.kernels import (
    Latents,
    bags,
    decode,
    latents_from_dense,
    reference,
    sampled_products,
    to_columns,
    weight_gradient,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
SHAPES = [(0, 5, 3), (1, 1, 1), (3, 5, 4), (17, 64, 8), (9, 300, 2)]
SHARES = [0.0, 0.01, 0.05, 0.2, 1.0]
"""Of active entries; the dense product takes over at 0.08."""


def latents_of(n_tokens: int, d_sae: int, share: float, *, seed: int, dtype: torch.dtype) -> Latents:
    mask = randn(n_tokens, d_sae, seed=seed).mul(0.5).erf().add(1).div(2) <= share
    return latents_from_dense(randn(n_tokens, d_sae, seed=seed + 1, dtype=dtype) * mask)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == dtype
    scale = max(1.0, float(expected.abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.fixture(params=["by density", "sparse", "dense"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "by density":
        monkeypatch.setattr(bags, "DENSE_DENSITY", 2.0 if request.param == "sparse" else -1.0)
    return str(request.param)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_kernels_equal_their_twins(path: str, dtype: torch.dtype, shape: tuple[int, int, int], share: float) -> None:
    n_tokens, d_sae, width = shape
    latents = latents_of(n_tokens, d_sae, share, seed=4, dtype=dtype)
    weight, table = randn(d_sae, width, seed=2, dtype=dtype), randn(n_tokens, width, seed=3, dtype=dtype)
    values = randn(latents.nnz, seed=5, dtype=dtype)
    close(decode(latents, weight), reference.decode_dense(latents, weight), dtype)
    close(sampled_products(latents, table, weight), reference.sampled_products_dense(latents, table, weight), dtype)
    got = weight_gradient(to_columns(latents), values, table)
    close(got, reference.weight_gradient_dense(latents.with_values(values), table), dtype)


def test_twins_equal_hand_numbers() -> None:
    latents = latents_from_dense(torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1.0, 0.0, 4.0]]))
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    left = torch.tensor([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]])
    assert reference.decode_dense(latents, weight).tolist() == [[3.0, 5.0], [0.0, 0.0], [5.0, 4.0]]
    assert reference.sampled_products_dense(latents, left, weight).tolist() == [2.0, 3.0, 3.0, 7.0]
    assert reference.weight_gradient_dense(latents, left).tolist() == [[3.0, 4.0], [2.0, 4.0], [15.0, 22.0]]


@pytest.mark.parametrize(("n_active", "dense"), [(8, False), (9, True)])
def test_density_alone_decides_the_path(n_active: int, dense: bool) -> None:
    values = torch.zeros(10, 10)
    values.view(-1)[:n_active] = 1.0
    assert bags.is_dense(latents_from_dense(values)) is dense


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 90), st.sampled_from(SHARES), st.integers(0, 1000))
def test_columns_are_the_stable_transpose(n_tokens: int, d_sae: int, share: float, seed: int) -> None:
    latents = latents_of(n_tokens, d_sae, share, seed=seed, dtype=torch.float64)
    columns = to_columns(latents)
    transposed = latents_from_dense(latents.to_dense().T)
    assert columns.offsets.dtype == columns.tokens.dtype == torch.int32
    assert torch.equal(columns.offsets, transposed.crow)
    assert torch.equal(columns.tokens, transposed.indices)
    assert torch.equal(latents.values[columns.order], transposed.values)
    assert torch.equal(columns.counts, latents.counts())


@pytest.mark.parametrize("d_sae", [65535, 65536, 65537, 70000])
def test_order_beyond_sixteen_bit_indices(d_sae: int) -> None:
    indices = torch.tensor([d_sae - 1, 0, 65534, 5, d_sae - 1, 0], dtype=torch.int32)
    expected = sorted(range(6), key=lambda i: (int(indices[i]), i))
    assert bags._stable_order(indices, d_sae).tolist() == expected


def test_values_are_cast_to_the_weights_dtype_on_both_paths(path: str) -> None:
    latents = latents_of(5, 40, 0.05, seed=1, dtype=torch.float32)
    weight, table = randn(40, 3, seed=2), randn(5, 3, seed=3)
    assert decode(latents, weight).dtype == torch.float64
    assert weight_gradient(to_columns(latents), latents.values, table).dtype == torch.float64


@pytest.mark.parametrize("share", SHARES)
def test_same_input_same_bits(share: float) -> None:
    latents = latents_of(50, 200, share, seed=1, dtype=torch.float32)
    weight, table = randn(200, 6, seed=2, dtype=torch.float32), randn(50, 6, seed=3, dtype=torch.float32)
    for kernel in (
        lambda: decode(latents, weight),
        lambda: sampled_products(latents, table, weight),
        lambda: weight_gradient(to_columns(latents), latents.values, table),
    ):
        assert torch.equal(kernel(), kernel())


def test_the_sum_over_a_token_does_not_depend_on_the_other_tokens() -> None:
    latents = latents_of(6, 200, 0.05, seed=1, dtype=torch.float32)
    weight = randn(200, 6, seed=2, dtype=torch.float32)
    alone = latents_from_dense(latents.to_dense()[2:3])
    assert torch.equal(decode(alone, weight), decode(latents, weight)[2:3])
