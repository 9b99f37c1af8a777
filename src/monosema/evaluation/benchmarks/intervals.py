"""Means with 95 % intervals, by resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.seeds import random_stream

LEVEL = 0.95
RESAMPLES = 1000
_AT_A_TIME = 2**22


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval over bootstrap resamples; all are NaN where there was nothing to measure."""

    value: float
    """The value measured."""
    low: float
    """The lower end."""
    high: float
    """The upper end."""

    @classmethod
    def of(cls, scores: Tensor) -> Interval:
        """Of ``scores [1 + n_resamples]``: that of what was measured, then that of each resample, where defined."""
        value, resampled = float(scores[0]), scores[1:].double()
        resampled = resampled[~resampled.isnan()]
        if math.isnan(value) or not len(resampled):
            return cls(value, math.nan, math.nan)
        tail = (1 - LEVEL) / 2
        low, high = resampled.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return cls(value, low, high)

    def __str__(self) -> str:
        return "undefined" if math.isnan(self.value) else f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def resampled_means(values: Tensor, seed: int, *names: str | int, groups: Tensor | None = None) -> Tensor:
    """``[1 + 1000, ...]`` float64: the mean of ``values [n, ...]`` as they are, and over each of 1,000 resamples.

    With ``groups [n]`` (int64), whole groups are resampled, as what depends on each other must be: the tokens of a
    document. The same seed, names and groups draw the same resamples, so that figures of the same rows can be
    compared. Of no values all is NaN.
    """
    values = values.double().cpu()
    n = len(values)
    if n == 0:
        return torch.full((1 + RESAMPLES, *values.shape[1:]), math.nan, dtype=torch.float64)
    sums, counts = values.reshape(n, -1), torch.ones(n, dtype=torch.float64)
    if groups is not None:
        group = groups.cpu().unique(return_inverse=True)[1]
        n = int(group.max()) + 1
        counts = torch.bincount(group, minlength=n).double()
        sums = sums.new_zeros(n, sums.shape[1]).index_add_(0, group, sums)
    generator = random_stream(seed, "benchmark", "bootstrap", *names)
    means = [sums.sum(0, keepdim=True) / counts.sum()]
    step = max(1, min(RESAMPLES, _AT_A_TIME // n))
    for start in range(0, RESAMPLES, step):
        drawn = torch.randint(n, (min(step, RESAMPLES - start), n), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        means.append((times @ sums) / (times @ counts)[:, None])
    return torch.cat(means).reshape(1 + RESAMPLES, *values.shape[1:])


def bootstrap_mean(values: Tensor, seed: int, *names: str | int, groups: Tensor | None = None) -> Interval:
    """The mean of those of ``values [n]`` that are not NaN, with a percentile bootstrap interval (Efron 1979).

    The interval is that of other draws of values or ``groups``, not of other training seeds; from fewer than some 20
    of them it is too narrow, and where all values agree it has no width.
    """
    kept = ~values.isnan()
    return Interval.of(resampled_means(values[kept], seed, *names, groups=None if groups is None else groups[kept]))
