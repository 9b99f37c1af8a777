"""Figures as other libraries compute them, defects included, to compare with what they published.

None of these is in a report of ours; what they were meant to be is in ``reconstruction.py`` and ``patterns.py``.
Figures of reconstruction depend on how tokens were batched, so each function takes ``batch_tokens``, the rows
``[n, d]`` the library saw at a time (all at once by default), and :class:`PublishedSums` adds one batch to the next.
Notation: b batches, ``E_b`` the mean over the tokens of one, ``e = x - x_hat``. Sources: SAEBench 0.6.0
(``evals/core/main.py``), sae-lens 6.54.12 (``evals.py``), dictionary_learning 0.1.0 (``evaluation.py``),
transcoder_circuits (``sae_training/``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, ShapeError
from monosema.metrics.checks import require_finite, require_same_shape, wide
from monosema.metrics.scores import ratio


def explained_variance_saebench_0_6(x: Tensor, x_hat: Tensor, batch_tokens: int | None = None) -> float:
    """``explained_variance`` of SAEBench 0.6.0: ``1 - R / (S - (S / d)^2)``, ``S = mean_b E_b ||x||^2``, ``R`` of e.

    Meant is ``1 - R / (S - ||E x||^2)``, our ``fve``; but squares are stored where means were meant, and all their
    dimensions are averaged into one number. So predicting the mean scores anything, and more than 1 where the mean is
    large (sae-lens had the same until 6.45.1: SAELens PR 665). Batches count alike, whatever their size.
    """
    return PublishedSums.over(x, x_hat, batch_tokens).explained_variance_saebench_0_6


def explained_variance_legacy(x: Tensor, x_hat: Tensor, batch_tokens: int | None = None) -> float:
    """Mean over tokens of ``1 - ||e||^2 / ||x - E_b x||^2``: the explained variance that was published until 2025.

    ``explained_variance_legacy`` of SAEBench and sae-lens. A mean of ratios: tokens near the mean, whose denominator is
    small, decide it. Below ``fve`` in practice, and -inf where a token is its batch's mean (NaN where it is
    reconstructed exactly), as in a batch of one.
    """
    return PublishedSums.over(x, x_hat, batch_tokens).explained_variance_legacy


def mse_saebench_0_6(x: Tensor, x_hat: Tensor, batch_tokens: int | None = None) -> float:
    """``mse`` of SAEBench 0.6.0: mean over tokens of ``||e||^2 / n_b``, n_b the tokens of the token's own batch.

    Divided by the number of tokens twice; multiply by the tokens of a batch (special ones not counted) for our ``mse``
    where batches are of one size. sae-lens did the same until 6.45.2 (SAELens PR 711).
    """
    return PublishedSums.over(x, x_hat, batch_tokens).mse_saebench_0_6


def frac_variance_explained_dictionary_learning(x: Tensor, x_hat: Tensor, batch_tokens: int | None = None) -> float:
    """``frac_variance_explained`` of dictionary_learning: ``mean_b 1 - sum_d Var_b(e) / sum_d Var_b(x)``.

    The error is centred: a constant offset of ``x_hat``, and so any wrong bias, is invisible. Equal to ``fve`` of one
    batch where the error has mean zero, above it else.
    """
    return PublishedSums.over(x, x_hat, batch_tokens).frac_variance_explained_dictionary_learning


def l2_loss_dictionary_learning(x: Tensor, x_hat: Tensor, batch_tokens: int | None = None) -> float:
    """``l2_loss`` of dictionary_learning: ``mean_b E_b ||e||``, the mean norm of the error, not of its square.

    Its square is at most our ``mse`` of one batch.
    """
    return PublishedSums.over(x, x_hat, batch_tokens).l2_loss_dictionary_learning


def attention_kl_transcoder_circuits(p: Tensor, q: Tensor) -> float:
    """``kldiv_reconstructed`` and ``kldiv_ablation`` of transcoder_circuits, from patterns ``[..., T]`` of one head.

    ``E sum_k p_k (log2(p_k + 1e-10) - log2(q_k + 1e-10))``: bits, over all queries, those of BOS and the first of a
    context included, which have one key and so only lower the mean. The constant bounds the logarithms: no query costs
    more than 33 bits. ln 2 times this is the mean of ``pattern_kl`` where it does not matter. There, head 0 has no such
    figures, and the ablation zeroes the other heads and special positions too.
    """
    require_same_shape(p, q)
    p, q = wide(p), wide(q)
    return float((p * ((p + 1e-10).log2() - (q + 1e-10).log2())).sum(-1).mean())


@dataclass(frozen=True)
class PublishedSums:
    """Sums of the figures above over batches, float64; those of two lists of batches add to those of both."""

    d: int
    """Width of ``x``."""
    n_batches: int = 0
    """Batches summed."""
    n_tokens: int = 0
    """Their tokens."""
    squared_norm: float = 0.0
    """Sum over batches of ``E_b ||x||^2``."""
    squared_error: float = 0.0
    """Of ``E_b ||e||^2``."""
    error_norm: float = 0.0
    """Of ``E_b ||e||``."""
    centred_fve: float = 0.0
    """Of ``1 - sum_d Var_b(e) / sum_d Var_b(x)``."""
    token_fve: float = 0.0
    """Sum over tokens of ``1 - ||e||^2 / ||x - E_b x||^2``."""

    @classmethod
    def over(cls, x: Tensor, x_hat: Tensor, batch_tokens: int | None = None) -> PublishedSums:
        """The sums of rows ``[n, d]`` in batches of ``batch_tokens`` (all at once where None; the last may be smaller).

        Raises ``ShapeError`` for other shapes, ``DataError`` where a value is not finite, and ``ConfigError`` for a
        batch of less than one token.
        """
        require_same_shape(x, x_hat)
        if x.dim() != 2:
            raise ShapeError(f"x must be rows [n, d], got {list(x.shape)}; leave special positions out and flatten it")
        if batch_tokens is not None and batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1, or None, got {batch_tokens}")
        total = cls(x.shape[1])
        step = batch_tokens or max(1, len(x))
        for start in range(0, len(x), step):
            total = total + _batch_sums(x.detach()[start : start + step], x_hat.detach()[start : start + step])
        return total

    def __add__(self, other: PublishedSums) -> PublishedSums:
        if self.d != other.d:
            raise ShapeError(f"cannot add sums over {other.d} dimensions to those over {self.d}")
        return PublishedSums(
            d=self.d,
            n_batches=self.n_batches + other.n_batches,
            n_tokens=self.n_tokens + other.n_tokens,
            squared_norm=self.squared_norm + other.squared_norm,
            squared_error=self.squared_error + other.squared_error,
            error_norm=self.error_norm + other.error_norm,
            centred_fve=self.centred_fve + other.centred_fve,
            token_fve=self.token_fve + other.token_fve,
        )

    @property
    def explained_variance_saebench_0_6(self) -> float:
        """See :func:`explained_variance_saebench_0_6`."""
        squared = ratio(self.squared_norm, self.n_batches)
        return 1.0 - ratio(ratio(self.squared_error, self.n_batches), squared - (squared / self.d) ** 2)

    @property
    def explained_variance_legacy(self) -> float:
        """See :func:`explained_variance_legacy`."""
        return ratio(self.token_fve, self.n_tokens)

    @property
    def mse_saebench_0_6(self) -> float:
        """See :func:`mse_saebench_0_6`."""
        return ratio(self.squared_error, self.n_tokens)

    @property
    def frac_variance_explained_dictionary_learning(self) -> float:
        """See :func:`frac_variance_explained_dictionary_learning`."""
        return ratio(self.centred_fve, self.n_batches)

    @property
    def l2_loss_dictionary_learning(self) -> float:
        """See :func:`l2_loss_dictionary_learning`."""
        return ratio(self.error_norm, self.n_batches)


def _batch_sums(rows: Tensor, rows_hat: Tensor) -> PublishedSums:
    """The sums of one batch ``[n, d]``."""
    require_finite("x", rows)
    require_finite("x_hat", rows_hat)
    x = wide(rows)
    error = x - wide(rows_hat)
    squared_error, deviation = error.square().sum(1), (x - x.mean(0)).square().sum(1)
    sums = torch.stack(
        [
            x.square().sum(1).mean(),
            squared_error.mean(),
            squared_error.sqrt().mean(),
            1 - (error - error.mean(0)).square().sum() / deviation.sum(),
            (1 - squared_error / deviation).sum(),
        ]
    ).tolist()
    return PublishedSums(rows.shape[1], 1, len(rows), *sums)
