"""How close a reconstruction is to what it reconstructs.

``x`` and ``x_hat`` are ``[..., d]``: leading axes are tokens, the last is the width of the site. ``E`` is the mean
over tokens; norms are Euclidean, over the whole of ``d``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.metrics.checks import require_finite, require_same_shape, wide
from monosema.metrics.scores import ratio

_CHUNK_ELEMENTS = {"cpu": 2**18}
"""Values widened to float64 at a time, by device (2**24 where not named): few enough for the cache of a CPU."""

TERMS = (
    "squared_error",
    "squared_norm_out",
    "inner_product",
    "n_nonzero",
    "cosine_total",
    "norm_ratio_total",
    "norm_in_total",
    "norm_out_total",
)
"""The columns of ``token_terms``."""

_CONSTANT = 1e-28
"""Variance below this share of the squared mean is rounding of float64, not variance."""


def fve(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of variance explained, ``1 - sum ||x - x_hat||^2 / sum ||x - E x||^2``.

    In (-inf, 1]: 1 is perfect, 0 is as good as predicting the mean of the tokens evaluated. A constant offset of
    ``x_hat`` lowers it (the error is not centred). NaN where ``x`` does not vary. Also called explained variance, and
    one minus the normalised MSE of Gao et al. 2024 (arXiv 2406.04093, section 2.1, with the mean as the baseline).
    """
    return ReconstructionSums.of(x, x_hat).fve


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of variance unexplained, ``1 - fve``: 0 is perfect, 1 is as good as predicting the mean."""
    return ReconstructionSums.of(x, x_hat).fvu


def fve_centred(x: Tensor, x_hat: Tensor) -> float:
    """``1 - sum ||e - E e||^2 / sum ||x - E x||^2`` with ``e = x - x_hat``: what ``fve`` would be of unbiased errors.

    At least ``fve``; the difference is what a constant offset of ``x_hat`` costs, which this does not see. NaN where
    ``x`` does not vary. dictionary_learning's ``frac_variance_explained``.
    """
    return ReconstructionSums.of(x, x_hat).fve_centred


def fve_per_dimension(x: Tensor, x_hat: Tensor) -> Tensor:
    """``[d]`` float64: ``fve`` of each dimension by itself; NaN where it does not vary.

    Its mean weighs all dimensions alike; ``fve`` weighs each by its variance.
    """
    return ReconstructionSums.of(x, x_hat).fve_per_dimension


def mse(x: Tensor, x_hat: Tensor) -> float:
    """Squared error per token, ``E ||x - x_hat||^2``: summed over dimensions, averaged over tokens.

    In [0, inf). Divide by ``d`` for the mean over elements, which some libraries call by the same name.
    """
    return ReconstructionSums.of(x, x_hat).mse


def cosine(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of ``<x, x_hat> / (||x|| ||x_hat||)``.

    In [-1, 1]. A token with ``x_hat = 0`` counts as 0; one with ``x = 0`` has no direction and is left out; NaN where
    that leaves none.
    """
    return ReconstructionSums.of(x, x_hat).cosine


def norm_ratio(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of ``||x_hat|| / ||x||``.

    In [0, inf); below 1 is shrinkage. Tokens with ``x = 0`` are left out; NaN where that leaves none. Called
    ``l2_ratio`` by SAELens and dictionary_learning.
    """
    return ReconstructionSums.of(x, x_hat).norm_ratio


def relative_reconstruction_bias(x: Tensor, x_hat: Tensor) -> float:
    """``E ||x_hat||^2 / E <x, x_hat>``: the factor by which reconstructions are too long or too short.

    It is the ``gamma`` that minimises ``E ||x_hat / gamma - x||^2``: 1 is unbiased, below 1 is shrinkage. NaN where
    ``E <x, x_hat>`` is 0. Rajamanoharan et al. 2024 (arXiv 2404.16014, section 4.2).
    """
    return ReconstructionSums.of(x, x_hat).relative_reconstruction_bias


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums from which every reconstruction metric follows; those of two sets of tokens add to those of both.

    The variance is merged as in Chan, Golub and LeVeque 1983 ("Algorithms for computing the sample variance"), so
    that a mean far larger than the deviations costs no digits. All sums are float64.
    """

    n_tokens: int
    """Tokens summed."""
    mean: Tensor
    """``[d]`` float64 on the CPU: the mean of ``x``."""
    squared_deviation: Tensor
    """``[d]`` float64 on the CPU: ``sum (x - mean)^2`` of each dimension."""
    error: Tensor
    """``[d]`` float64 on the CPU: ``sum (x - x_hat)``."""
    squared_error: Tensor
    """``[d]`` float64 on the CPU: ``sum (x - x_hat)^2``."""
    squared_norm_out: float
    """``sum ||x_hat||^2``."""
    inner_product: float
    """``sum <x, x_hat>``."""
    n_nonzero: int
    """Tokens with ``x != 0``, over which cosine and norm ratio are averaged."""
    cosine_total: float
    """``sum <x, x_hat> / (||x|| ||x_hat||)`` over those."""
    norm_ratio_total: float
    """``sum ||x_hat|| / ||x||`` over those."""
    norm_in_total: float
    """``sum ||x||``."""
    norm_out_total: float
    """``sum ||x_hat||``."""

    @classmethod
    def empty(cls, d: int) -> ReconstructionSums:
        """The sums of no tokens of width ``d``."""
        zero = torch.zeros(d, dtype=torch.float64)
        return cls(0, zero, zero, zero, zero, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, x: Tensor, x_hat: Tensor) -> ReconstructionSums:
        """The sums of the tokens ``x [..., d]`` and their reconstructions ``x_hat [..., d]``.

        Raises ``ShapeError`` where the shapes differ and ``DataError`` where a value is not finite.
        """
        require_same_shape(x, x_hat)
        rows, rows_hat = x.detach().reshape(-1, x.shape[-1]), x_hat.detach().reshape(-1, x.shape[-1])
        total = cls.empty(rows.shape[1])
        step = max(1, _CHUNK_ELEMENTS.get(rows.device.type, 2**24) // max(1, rows.shape[1]))
        for start in range(0, rows.shape[0], step):
            total = total + _chunk_sums(rows[start : start + step], rows_hat[start : start + step])
        return total

    def __add__(self, other: ReconstructionSums) -> ReconstructionSums:
        n_tokens = self.n_tokens + other.n_tokens
        if n_tokens == 0:
            return self
        delta = other.mean - self.mean
        share = other.n_tokens / n_tokens
        between = delta.square() * (self.n_tokens * share)
        return ReconstructionSums(
            n_tokens=n_tokens,
            mean=self.mean + delta * share,
            squared_deviation=self.squared_deviation + other.squared_deviation + between,
            error=self.error + other.error,
            squared_error=self.squared_error + other.squared_error,
            squared_norm_out=self.squared_norm_out + other.squared_norm_out,
            inner_product=self.inner_product + other.inner_product,
            n_nonzero=self.n_nonzero + other.n_nonzero,
            cosine_total=self.cosine_total + other.cosine_total,
            norm_ratio_total=self.norm_ratio_total + other.norm_ratio_total,
            norm_in_total=self.norm_in_total + other.norm_in_total,
            norm_out_total=self.norm_out_total + other.norm_out_total,
        )

    @property
    def fve(self) -> float:
        """See :func:`fve`."""
        return 1.0 - self.fvu

    @property
    def fvu(self) -> float:
        """See :func:`fvu`."""
        return ratio(float(self.squared_error.sum()), self.variation)

    @property
    def fve_centred(self) -> float:
        """See :func:`fve_centred`."""
        if self.n_tokens == 0:
            return math.nan
        centred = self.squared_error - self.error.square() / self.n_tokens
        return 1.0 - ratio(float(centred.clamp(min=0).sum()), self.variation)

    @property
    def fve_per_dimension(self) -> Tensor:
        """See :func:`fve_per_dimension`."""
        constant = self.squared_deviation <= _CONSTANT * self.n_tokens * self.mean.square()
        return 1.0 - self.squared_error / self.squared_deviation.masked_fill(constant, math.nan)

    @property
    def variation(self) -> float:
        """``sum ||x - mean||^2``; 0 where it is no more than the rounding of a constant."""
        total = float(self.squared_deviation.sum())
        return total if total > _CONSTANT * self.n_tokens * float(self.mean @ self.mean) else 0.0

    @property
    def mse(self) -> float:
        """See :func:`mse`."""
        return ratio(float(self.squared_error.sum()), self.n_tokens)

    @property
    def cosine(self) -> float:
        """See :func:`cosine`."""
        return ratio(self.cosine_total, self.n_nonzero)

    @property
    def norm_in(self) -> float:
        """Mean over tokens of ``||x||``."""
        return ratio(self.norm_in_total, self.n_tokens)

    @property
    def norm_out(self) -> float:
        """Mean over tokens of ``||x_hat||``."""
        return ratio(self.norm_out_total, self.n_tokens)

    @property
    def norm_ratio(self) -> float:
        """See :func:`norm_ratio`."""
        return ratio(self.norm_ratio_total, self.n_nonzero)

    @property
    def relative_reconstruction_bias(self) -> float:
        """See :func:`relative_reconstruction_bias`."""
        return ratio(self.squared_norm_out, self.inner_product)


def token_terms(x: Tensor, x_hat: Tensor) -> Tensor:
    """``[n, 8]`` float64 of each token ``x, x_hat [n, d]``: what the metrics are sums of.

    The columns are ``TERMS``; cosine and norm ratio are 0 where a token is left out of their mean.
    """
    x, x_hat = wide(x), wide(x_hat)
    inner = (x * x_hat).sum(1)
    norm_in, norm_out = torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(x_hat, dim=1)
    nonzero = norm_in > 0
    length_in = torch.where(nonzero, norm_in, 1.0)
    lengths = length_in * torch.where(norm_out > 0, norm_out, 1.0)
    cosines = (inner / lengths).clamp(-1.0, 1.0)  # 0 where either is zero
    ratios = torch.where(nonzero, norm_out / length_in, 0.0)
    error = (x - x_hat).square().sum(1)
    return torch.stack(
        [error, norm_out.square(), inner, nonzero.to(inner.dtype), cosines, ratios, norm_in, norm_out], dim=1
    )


def _chunk_sums(rows: Tensor, rows_hat: Tensor) -> ReconstructionSums:
    """The sums of few enough rows ``[n, d]`` to be widened at once."""
    x, x_hat = wide(rows), wide(rows_hat)
    mean, error = x.mean(0), x - x_hat
    columns = torch.stack([mean, (x - mean).square().sum(0), error.sum(0), error.square().sum(0)]).cpu()
    totals = token_terms(x, x_hat).sum(0).cpu()
    if not bool(columns.isfinite().all() & totals.isfinite().all()):
        require_finite("x", rows)
        require_finite("x_hat", rows_hat)
    _, norm, product, n_nonzero, cosine_total, ratio_total, norm_in, norm_out = totals.tolist()
    return ReconstructionSums(
        n_tokens=rows.shape[0],
        mean=columns[0],
        squared_deviation=columns[1],
        error=columns[2],
        squared_error=columns[3],
        squared_norm_out=norm,
        inner_product=product,
        n_nonzero=int(n_nonzero),
        cosine_total=cosine_total,
        norm_ratio_total=ratio_total,
        norm_in_total=norm_in,
        norm_out_total=norm_out,
    )
