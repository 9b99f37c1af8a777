"""``Latents``: one layout for equal activations."""

from random import Random

import pytest
import torch
from coder_cases import assert_canonical, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosema.core.errors import ShapeError
from monosema.kernels import Latents, latents_from_dense, latents_from_mask, latents_from_pairs
from monosema.kernels.latents import flat_tokens


def sparse(*shape: int, seed: int, share: float = 0.3, dtype: torch.dtype = torch.float64) -> Tensor:
    values = randn(*shape, seed=seed, dtype=dtype)
    return values * (randn(*shape, seed=seed + 1).sigmoid() < share)


def assert_equal(a: Latents, b: Latents) -> None:
    assert torch.equal(a.crow, b.crow)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.values, b.values)
    assert (a.d_sae, a.leading_shape) == (b.d_sae, b.leading_shape)


def test_hand_written_layout() -> None:
    dense = torch.tensor([[[0.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0], [0.0, 0.0, 5.0]]])
    latents = latents_from_dense(dense)
    assert latents.crow.tolist() == [0, 2, 2, 3, 4]
    assert latents.indices.tolist() == [1, 2, 0, 2]
    assert latents.values.tolist() == [2.0, 3.0, -1.0, 5.0]
    assert latents.rows().tolist() == [0, 0, 2, 3]
    assert latents.counts().tolist() == [1, 1, 2]
    assert latents.leading_shape == (2, 2)
    assert (latents.n_tokens, latents.nnz, latents.d_sae) == (4, 4, 3)
    assert torch.equal(latents.to_dense(), dense)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 6), st.integers(1, 70), st.integers(0, 1000), st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_dense_round_trip(n_tokens: int, d_sae: int, seed: int, share: float, dtype: torch.dtype) -> None:
    dense = sparse(n_tokens, d_sae, seed=seed, share=share, dtype=dtype)
    latents = latents_from_dense(dense)
    assert_canonical(latents)
    assert latents.values.dtype == dtype
    assert torch.equal(latents.to_dense(), dense)
    assert torch.equal(latents.counts(), (dense != 0).sum(0))
    assert_equal(latents_from_mask(dense, dense != 0), latents)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.integers(1, 70), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_pairs_in_any_order_give_the_same_tensors(n_tokens: int, d_sae: int, seed: int, random: Random) -> None:
    latents = latents_from_dense(sparse(n_tokens, d_sae, seed=seed))
    order = list(range(latents.nnz))
    random.shuffle(order)
    shuffled = [t[order] for t in (latents.rows(), latents.indices, latents.values)]
    assert_equal(latents_from_pairs(*shuffled, n_tokens, d_sae), latents)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 0, 3)])
def test_leading_shape_is_kept(leading: tuple[int, ...]) -> None:
    dense = sparse(*leading, 7, seed=1)
    latents = latents_from_dense(dense)
    assert latents.leading_shape == leading
    assert torch.equal(latents.to_dense(), dense)


def test_with_values_keeps_the_entries() -> None:
    latents = latents_from_dense(sparse(3, 5, seed=1))
    doubled = latents.with_values(2 * latents.values)
    assert torch.equal(doubled.to_dense(), 2 * latents.to_dense())
    assert doubled.indices is latents.indices
    with pytest.raises(ShapeError, match="expected"):
        latents.with_values(torch.zeros(latents.nnz + 1))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (2, 0, 5)])
def test_flat_tokens(shape: tuple[int, ...]) -> None:
    x = randn(*shape, seed=0)
    assert torch.equal(flat_tokens(x, 5, "encode"), x.reshape(-1, 5))


@pytest.mark.parametrize("shape", [(), (4,), (5, 4)])
def test_flat_tokens_refuses_another_width(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"encode: expected \[\.\.\., 5\]"):
        flat_tokens(torch.zeros(shape), 5, "encode")
