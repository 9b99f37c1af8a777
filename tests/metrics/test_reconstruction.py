"""Reconstruction metrics: hand-computed values, and the invariants every one of them must keep."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import pytest
import torch

from monosema.core.errors import DataError, ShapeError
from monosema.metrics import (
    ReconstructionSums,
    cosine,
    fve,
    fve_centred,
    fve_per_dimension,
    fvu,
    mse,
    norm_ratio,
    relative_reconstruction_bias,
    token_terms,
)

METRICS = {
    "fve": fve,
    "mse": mse,
    "cosine": cosine,
    "norm_ratio": norm_ratio,
    "relative_reconstruction_bias": relative_reconstruction_bias,
}
IDEAL = {"fve": 1.0, "mse": 0.0, "cosine": 1.0, "norm_ratio": 1.0, "relative_reconstruction_bias": 1.0}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _pair(n: int = 500, d: int = 7, *, offset: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator) + offset
    return x, x + 0.5 * torch.randn(n, d, generator=generator)


def test_hand_computed_values():
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    x_hat = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    # errors 16 and 1; mean (1.5, 3): deviations 2.25 + 1 each, 6.5 in all; <x, x_hat> 9 and 2; norms 5, 2 and 3, 1
    assert fve(x, x_hat) == pytest.approx(1 - 17 / 6.5, rel=1e-15)
    assert mse(x, x_hat) == 8.5
    assert cosine(x, x_hat) == pytest.approx((9 / 15 + 1) / 2, rel=1e-15)
    assert norm_ratio(x, x_hat) == pytest.approx((3 / 5 + 1 / 2) / 2, rel=1e-15)
    assert relative_reconstruction_bias(x, x_hat) == pytest.approx(10 / 11, rel=1e-15)


@pytest.mark.parametrize(
    ("x", "x_hat", "explained", "per_token", "error"),
    [
        # mean (2, 1): 4 + 1 + 4 + 1 = 10; errors 1, 1; each token's of its 5
        ([[0, 0], [4, 2]], [[1, 0], [4, 1]], 0.8, [0.8, 0.8], 1.0),
        # mean 1: 1 + 1 = 2; errors .25, .25
        ([[0], [2]], [[0.5], [1.5]], 0.75, [0.75, 0.75], 0.25),
        # mean 0: 3 + 3 + 5 + 5 = 16; errors 0, 0, 2.5, 2.5: tokens' shares 1, 1, .5, .5
        (
            [[3**0.5, 0], [-(3**0.5), 0], [0, 5**0.5], [0, -(5**0.5)]],
            [[3**0.5, 0], [-(3**0.5), 0], [2.5**0.5, 5**0.5], [0, 2.5**0.5 - 5**0.5]],
            0.6875,
            [1, 1, 0.5, 0.5],
            1.25,
        ),
        # the mean of the tokens explains nothing
        ([[1, 0], [3, 4]], [[2, 2], [2, 2]], 0.0, [0, 0], 5.0),
        ([[1, 0], [3, 4]], [[1, 0], [3, 4]], 1.0, [1, 1], 0.0),
        # twice as far from the mean, on the other side: errors (3 / 1)^2 times the variance
        ([[0], [2]], [[3], [-1]], -8.0, [-8, -8], 9.0),
    ],
    ids=["0.8", "0.75", "0.6875", "mean", "identity", "worse than the mean"],
)
def test_explained_variance_by_hand(x, x_hat, explained, per_token, error):
    x, x_hat = (torch.tensor(rows, dtype=torch.float64) for rows in (x, x_hat))
    near = {"rel": 1e-12, "abs": 1e-12}
    for shift in (0.0, -7.0):  # both moved: the same error about a moved mean
        assert fve(x + shift, x_hat + shift) == pytest.approx(explained, **near)
        assert fvu(x + shift, x_hat + shift) == pytest.approx(1 - explained, **near)
        assert mse(x + shift, x_hat + shift) == pytest.approx(error, **near)
    own = token_terms(x, x_hat)[:, 0] / (x - x.mean(0)).square().sum(1)
    assert (1 - own).tolist() == pytest.approx(per_token, **near)


def test_noise_of_half_the_deviation_costs_a_quarter():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 4, generator=generator)
    assert fve(x, x + 0.5 * torch.randn(x.shape, generator=generator)) == pytest.approx(0.75, abs=0.02)


def test_each_dimension_has_a_figure_of_its_own_and_a_constant_one_has_none():
    x = torch.tensor([[0.0, 1.0, 5.0], [2.0, 3.0, 5.0]])
    x_hat = torch.tensor([[0.5, 0.0, 5.0], [1.5, 3.0, 4.0]])
    # variations 2, 2, 0; errors .5, 1, 1; all together 2.5 of 4
    assert fve_per_dimension(x, x_hat).tolist() == pytest.approx([0.75, 0.5, math.nan], nan_ok=True)
    assert fve(x, x_hat) == 1 - 2.5 / 4
    # errors (-.5, 1, 0) and (.5, 0, 1), their mean (0, .5, .5): .5 + .5 + .5 are left of them
    assert fve_centred(x, x_hat) == 1 - 1.5 / 4


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_perfect_reconstruction_is_ideal(name: str, dtype: torch.dtype):
    x = _pair()[0].to(dtype)
    assert METRICS[name](x, x.clone()) == pytest.approx(IDEAL[name], abs=1e-14)


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 1e4])
def test_predicting_the_mean_explains_nothing(offset: float):
    x = _pair(offset=offset)[0].double()
    assert fve(x, x.mean(0).expand_as(x)) == pytest.approx(0.0, abs=1e-10)


def test_every_metric_when_predicting_the_mean():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]], dtype=torch.float64)
    x_hat = x.mean(0).expand_as(x)  # (2, 1), norm sqrt 5
    assert fve(x, x_hat) == pytest.approx(0.0, abs=1e-15)
    assert mse(x, x_hat) == pytest.approx((1 + 1 + 1 + 1 + 4) / 3)
    assert norm_ratio(x, x_hat) == pytest.approx(math.sqrt(5) * (1 + 1 / 3 + 1 / math.sqrt(13)) / 3)
    assert cosine(x, x_hat) == pytest.approx((2 / math.sqrt(5) * 2 + 7 / math.sqrt(65)) / 3)
    assert relative_reconstruction_bias(x, x_hat) == pytest.approx(1.0)  # a mean is unbiased


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("sizes", [[1] * 500, [499, 1], [1, 499], [250, 250], [7] * 71 + [3]])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_any_batch_split_gives_the_same_value(name: str, sizes: list[int], offset: float):
    x, x_hat = _pair(offset=offset)
    parts = [ReconstructionSums.of(a, b) for a, b in zip(x.split(sizes), x_hat.split(sizes), strict=True)]
    assert getattr(reduce(add, parts), name) == pytest.approx(METRICS[name](x, x_hat), rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_batches_and_empty_ones_do_not_matter(name: str):
    x, x_hat = _pair()
    parts = [ReconstructionSums.of(a, b) for a, b in zip(x.split(90), x_hat.split(90), strict=True)]
    empty = ReconstructionSums.empty(7)
    shuffled = reduce(add, [empty, *reversed(parts), ReconstructionSums.of(x[:0], x_hat[:0])])
    assert shuffled.n_tokens == 500
    assert getattr(shuffled, name) == pytest.approx(METRICS[name](x, x_hat), rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_more_values_than_are_widened_at_once(name: str, monkeypatch: pytest.MonkeyPatch):
    x, x_hat = _pair()
    whole = METRICS[name](x, x_hat)
    monkeypatch.setattr("monosema.metrics.reconstruction._CHUNK_ELEMENTS", {"cpu": 20})
    assert METRICS[name](x, x_hat) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_leading_axes_are_tokens(name: str):
    x, x_hat = _pair(n=12)
    assert METRICS[name](x.reshape(3, 4, 7), x_hat.reshape(3, 4, 7)) == METRICS[name](x, x_hat)


def test_variance_keeps_its_digits_beside_a_large_mean():
    x = torch.tensor([[1e8 + 1], [1e8 - 1]], dtype=torch.float64)
    parts = ReconstructionSums.of(x[:1], x[:1]) + ReconstructionSums.of(x[1:], x[1:])
    assert parts.variation == 2.0


def test_an_outlier_token_first_costs_no_digits():
    x, x_hat = _pair(offset=0.0)
    x[0] *= 1e4  # as at the first position of many models
    parts = [ReconstructionSums.of(a, b) for a, b in zip(x.split(1), x_hat.split(1), strict=True)]
    wide = x.double()
    expected = (wide - wide.mean(0)).square().sum().item()
    assert reduce(add, parts).variation == pytest.approx(expected, rel=1e-12)


def test_a_constant_offset_of_the_reconstruction_costs_fve():
    x = _pair()[0].double()
    total = (x - x.mean(0)).square().sum().item()
    assert fve(x, x + 1) == pytest.approx(1 - 500 * 7 / total, rel=1e-12)
    assert fve(x, x + 1) < 0.1


def test_fve_is_invariant_to_shifting_both():
    x, x_hat = (each.double() for each in _pair())
    assert fve(x + 5, x_hat + 5) == pytest.approx(fve(x, x_hat), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_are_summed_in_float64(dtype: torch.dtype):
    x = torch.tensor([[0.0], [2.0]], dtype=dtype).repeat(30_000, 1)  # float16 sums overflow at 65504
    assert fve(x, x + 0.5) == 0.75
    assert mse(x, x + 0.5) == 0.25


def test_shrinkage_by_half():
    x = _pair()[0]
    assert norm_ratio(x, x / 2) == pytest.approx(0.5, rel=1e-12)
    assert cosine(x, x / 2) == pytest.approx(1.0, rel=1e-12)
    assert relative_reconstruction_bias(x, x / 2) == pytest.approx(0.5, rel=1e-12)


def test_tokens_of_norm_zero():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    x_hat = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 0.0]])
    assert cosine(x, x_hat) == 0.5  # the first is left out, the last counts as 0
    assert norm_ratio(x, x_hat) == 0.25


@pytest.mark.parametrize("value", [0.0, 0.1, 1e10])
def test_what_is_undefined_is_nan(value: float):
    constant = torch.full((5, 3), value, dtype=torch.float64)
    assert math.isnan(fve(constant, constant + 1e-3))
    assert math.isnan(ReconstructionSums.empty(3).mse)


def test_zero_activations_leave_directions_undefined():
    zero = torch.zeros(4, 3)
    assert math.isnan(cosine(zero, zero + 1))
    assert math.isnan(norm_ratio(zero, zero + 1))
    assert math.isnan(relative_reconstruction_bias(zero, zero + 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["x", "x_hat"])
def test_values_that_are_not_finite_are_refused_by_name(bad: float, name: str):
    x, x_hat = _pair()
    broken = {"x": x, "x_hat": x_hat}
    broken[name][5, 2] = bad
    with pytest.raises(DataError, match=rf"^{name} must be finite, but 1 of 3,500 .*index \[5, 2\]"):
        ReconstructionSums.of(x, x_hat)


def test_shapes_must_agree():
    with pytest.raises(ShapeError, match=r"\[2, 3\] and \[2, 4\]"):
        mse(torch.zeros(2, 3), torch.zeros(2, 4))


def test_inputs_are_left_as_they_are_and_gradients_are_not_kept():
    x, x_hat = _pair()
    before = x.clone(), x_hat.clone()
    x_hat.requires_grad_()
    assert isinstance(fve(x, x_hat), float)
    assert torch.equal(x, before[0])
    assert torch.equal(x_hat, before[1])
