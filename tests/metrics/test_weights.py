"""What weights say by themselves: by hand, and against the whole matrix of cosines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monosema.core.errors import DataError, ShapeError
from monosema.metrics import encoder_decoder_cosine, encoder_norms, max_cosine_to_others, weights

W_ENC = torch.tensor([[3.0, 0.0, 2.0, 0.0], [4.0, 0.5, 0.0, 0.0]])
W_DEC = torch.tensor([[0.6, 0.8], [0.0, -7.0], [1.0, 1.0], [1.0, 0.0]])


def test_lengths_of_encoder_rows() -> None:
    assert encoder_norms(W_ENC).tolist() == [5.0, 0.5, 2.0, 0.0]


def test_the_length_of_small_halves_does_not_vanish() -> None:
    assert encoder_norms(torch.full((4, 1), 1e-5, dtype=torch.float16)).item() == pytest.approx(2e-5, rel=0.01)


def test_encoder_and_decoder_of_each_latent() -> None:
    expected = torch.tensor([1.0, -1.0, math.sqrt(0.5), 0.0], dtype=torch.float64)  # the last encoder row is zero
    torch.testing.assert_close(encoder_decoder_cosine(W_ENC, W_DEC), expected)


def test_the_nearest_other_row() -> None:
    rows = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 2.0], [-3.0, -0.5], [0.0, 0.0]])
    # rows 0 and 2 are nearest to row 1, by 45 degrees; row 3 is at a right angle or more to all but the zero row
    expected = torch.tensor([math.sqrt(0.5), math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(max_cosine_to_others(rows), expected)


def test_only_directions_count_and_a_copy_has_cosine_one() -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    found = max_cosine_to_others(torch.cat([rows, 1e-30 * rows, 1e18 * rows]))
    torch.testing.assert_close(found, torch.ones_like(found))
    assert float(found.max()) <= 1


@pytest.mark.parametrize("chunk", [1, 7 * 23, 3 * 23 + 5, 2**22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_blocks_give_what_the_whole_matrix_gives(
    monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(weights, "_CHUNK_ELEMENTS", {"cpu": chunk})
    rows = torch.randn(23, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    expected = (unit @ unit.T - 3 * torch.eye(23, dtype=torch.float64)).amax(1)
    torch.testing.assert_close(max_cosine_to_others(rows), expected, atol=1e-6, rtol=0)


def test_a_lone_row_has_no_other() -> None:
    assert max_cosine_to_others(torch.ones(1, 3)).isnan().tolist() == [True]
    assert max_cosine_to_others(torch.ones(0, 3)).shape == (0,)


def test_opposite_rows_are_at_minus_one() -> None:
    assert max_cosine_to_others(torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]])).tolist() == pytest.approx([-1, -1])


def test_parameters_are_read_without_their_gradient() -> None:
    weight = torch.nn.Parameter(W_DEC.clone())
    assert not max_cosine_to_others(weight).requires_grad
    assert not encoder_decoder_cosine(weight.T, weight).requires_grad


@pytest.mark.parametrize("W_dec", [W_DEC.T, W_DEC[:2], torch.ones(4, 3), torch.ones(4)])
def test_other_shapes_have_no_cosine(W_dec: Tensor) -> None:
    with pytest.raises(ShapeError, match="of one d"):
        encoder_decoder_cosine(W_ENC, W_dec)


def test_what_is_no_finite_matrix_is_refused() -> None:
    with pytest.raises(ShapeError):
        max_cosine_to_others(torch.ones(3))
    with pytest.raises(ShapeError):
        encoder_norms(torch.ones(3))
    with pytest.raises(DataError, match="W_enc"):
        encoder_norms(W_ENC * math.inf)
