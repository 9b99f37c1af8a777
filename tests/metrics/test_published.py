"""Figures as others compute them: their defects by hand, and what they were meant to be beside them."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import pytest
import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.metrics import (
    PublishedSums,
    attention_kl_transcoder_circuits,
    explained_variance_legacy,
    explained_variance_saebench_0_6,
    frac_variance_explained_dictionary_learning,
    fve,
    l2_loss_dictionary_learning,
    mse,
    mse_saebench_0_6,
    pattern_kl,
)

FIGURES = {
    "explained_variance_saebench_0_6": explained_variance_saebench_0_6,
    "explained_variance_legacy": explained_variance_legacy,
    "mse_saebench_0_6": mse_saebench_0_6,
    "frac_variance_explained_dictionary_learning": frac_variance_explained_dictionary_learning,
    "l2_loss_dictionary_learning": l2_loss_dictionary_learning,
}
X = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
X_HAT = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def _random(n: int = 60, d: int = 5, offset: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator) + offset
    return x, x + 0.5 * torch.randn(n, d, generator=generator) + 0.1


def test_by_hand() -> None:
    # mean zero; squared norms 4, 4, 1, 1; squared errors 1, 1, 0, 0
    assert fve(X, X_HAT) == pytest.approx(1 - 2 / 10)
    assert explained_variance_legacy(X, X_HAT) == pytest.approx((0.75 + 0.75 + 1 + 1) / 4)
    assert explained_variance_saebench_0_6(X, X_HAT) == pytest.approx(1 - 0.5 / (2.5 - 1.25**2))
    assert mse_saebench_0_6(X, X_HAT) == pytest.approx(2 / 4 / 4)
    assert frac_variance_explained_dictionary_learning(X, X_HAT) == pytest.approx(0.8)
    assert l2_loss_dictionary_learning(X, X_HAT) == pytest.approx(0.5)


@pytest.mark.parametrize("name", FIGURES)
def test_a_perfect_reconstruction(name: str) -> None:
    assert FIGURES[name](X, X.clone()) == (1.0 if "varia" in name else 0.0)


@pytest.mark.parametrize(("mean", "score"), [(1, 0.48), (3, 0.88), (10, 1.017)])
def test_saebench_gives_the_mean_any_score(mean: float, score: float) -> None:
    """64 dimensions of variance one: S = 64 (mean^2 + 1)."""
    x = mean + torch.tensor([[1.0], [-1.0]]).expand(2, 64)
    x_hat = torch.full_like(x, mean)
    squared = 64 * (mean**2 + 1)
    found = explained_variance_saebench_0_6(x, x_hat)
    assert found == pytest.approx(1 - 64 / (squared - (squared / 64) ** 2), rel=1e-12)
    assert found == pytest.approx(score, abs=5e-3)
    assert fve(x, x_hat) == 0


def test_dictionary_learning_sees_no_offset() -> None:
    x, _ = _random()
    assert frac_variance_explained_dictionary_learning(x, x + 1) == pytest.approx(1, abs=1e-12)
    assert fve(x, x + 1) < 0.5


def test_the_legacy_mean_is_decided_by_tokens_near_the_mean() -> None:
    x = torch.tensor([[3.0], [-3.0], [0.1], [-0.1]])
    x_hat = x + torch.tensor([[0.0], [0.0], [0.2], [0.2]])
    assert fve(x, x_hat) == pytest.approx(1 - 0.08 / 18.02, rel=1e-6)
    assert explained_variance_legacy(x, x_hat) == pytest.approx((1 + 1 - 3 - 3) / 4, rel=1e-6)


def test_a_token_that_is_the_mean() -> None:
    assert explained_variance_legacy(X[:1], X_HAT[:1]) == -math.inf
    assert math.isnan(explained_variance_legacy(X[:1], X[:1]))


def test_saebench_divides_by_the_tokens_of_each_batch() -> None:
    x, x_hat = _random()
    assert mse_saebench_0_6(x, x_hat, 20) * 20 == pytest.approx(mse(x, x_hat), rel=1e-12)
    assert mse_saebench_0_6(x, x_hat, 10) == pytest.approx(2 * mse_saebench_0_6(x, x_hat, 20), rel=1e-12)


@pytest.mark.parametrize("batch_tokens", [1, 7, 30, 60, 61, None])
def test_batches_are_averaged_as_the_libraries_do(batch_tokens: int | None) -> None:
    """Written out with their own reductions, in float64."""
    x, x_hat = (rows.double() for rows in _random())
    pairs = list(zip(x.split(batch_tokens or 60), x_hat.split(batch_tokens or 60), strict=True))
    errors = [(a - b).pow(2).sum(-1) for a, b in pairs]
    squared = torch.stack([a.pow(2).sum(-1).mean() for a, _ in pairs]).mean()
    per_dimension = torch.cat([a.pow(2).mean(0) for a, _ in pairs]).mean()
    residual = torch.stack([error.mean() for error in errors]).mean()
    expected = {
        "explained_variance_saebench_0_6": 1 - residual / (squared - per_dimension**2),
        "explained_variance_legacy": torch.cat(
            [1 - error / (a - a.mean(0)).pow(2).sum(-1) for (a, _), error in zip(pairs, errors, strict=True)]
        ).mean(),
        "mse_saebench_0_6": torch.cat([error / len(error) for error in errors]).mean(),
        "l2_loss_dictionary_learning": torch.stack([(a - b).norm(dim=-1).mean() for a, b in pairs]).mean(),
    }
    if min(len(a) for a, _ in pairs) > 1:  # no variance of one token
        expected["frac_variance_explained_dictionary_learning"] = torch.stack(
            [1 - (a - b).var(0).sum() / a.var(0).sum() for a, b in pairs]
        ).mean()
    for name, value in expected.items():
        assert FIGURES[name](x, x_hat, batch_tokens) == pytest.approx(float(value), rel=1e-11), name


def test_sums_of_batches_add() -> None:
    x, x_hat = _random()
    parts = [PublishedSums.over(a, b) for a, b in zip(x.split(20), x_hat.split(20), strict=True)]
    total, whole = reduce(add, parts, PublishedSums(5)), PublishedSums.over(x, x_hat, 20)
    for name, function in FIGURES.items():
        assert getattr(total, name) == getattr(whole, name) == function(x, x_hat, 20)


def test_no_tokens_have_no_figure() -> None:
    for function in FIGURES.values():
        assert math.isnan(function(X[:0], X[:0]))


def test_low_precision_is_widened_before_it_is_squared() -> None:
    x = torch.full((2, 3), 300.0, dtype=torch.float16)  # its square overflows
    assert mse_saebench_0_6(x, torch.zeros_like(x)) == 3 * 300**2 / 2


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match="flatten"):
        explained_variance_legacy(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    with pytest.raises(ShapeError):
        explained_variance_legacy(X, X[:2])
    with pytest.raises(ShapeError, match="dimensions"):
        PublishedSums(2) + PublishedSums(3)
    with pytest.raises(ConfigError, match="batch_tokens"):
        mse_saebench_0_6(X, X_HAT, 0)
    with pytest.raises(DataError, match="x_hat"):
        mse_saebench_0_6(X, X_HAT * math.nan)


def test_attention_kl_is_in_bits_and_over_all_queries():
    p = torch.tensor([[1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    found = attention_kl_transcoder_circuits(p, q)
    assert found == pytest.approx(0.25 * math.log2(3), rel=1e-8), "the first query, which has one key, lowers the mean"
    assert found * math.log(2) == pytest.approx(pattern_kl(p, q).mean().item(), rel=1e-8)
    lost = attention_kl_transcoder_circuits(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert lost == pytest.approx(-math.log2(1e-10), rel=1e-6)
    with pytest.raises(ShapeError):
        attention_kl_transcoder_circuits(p, q[:1])
