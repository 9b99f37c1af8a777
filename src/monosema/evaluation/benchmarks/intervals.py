"""Means with 95 % intervals, by resampling."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.seeds import random_stream
from monosema.metrics.student import t_quantile

RESAMPLES = 1000
FEW_UNITS = 10
"""With fewer units an interval is too narrow: reports have a note."""
_AT_A_TIME = 2**22


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval over bootstrap resamples.

    All are NaN where there was nothing to measure, and the ends where there was one unit to resample.
    """

    value: float
    """The value measured."""
    low: float
    """The lower end."""
    high: float
    """The upper end."""

    @classmethod
    def of(cls, scores: Tensor, n_units: int) -> Interval:
        """Of ``scores [1 + n_resamples]``: that of what was measured, then that of each resample, where defined.

        Percentiles of resamples of ``n_units`` units are too narrow, as their spread is ``(n - 1) / n`` of the units'
        and known from n units only. They are taken further out, at ``Phi(-+ t sqrt(n / (n - 1)))`` with Student's t for
        ``n - 1`` degrees of freedom: the expanded percentile interval of Hesterberg 2015, arXiv 1411.5279. It stays in
        the range of the scores.
        """
        value, resampled = float(scores[0]), scores[1:].double()
        resampled = resampled[~resampled.isnan()]
        if math.isnan(value) or not len(resampled) or n_units < 2:
            return cls(value, math.nan, math.nan)
        tail = 0.5 * math.erfc(t_quantile(n_units - 1) * math.sqrt(n_units / (n_units - 1) / 2))
        low, high = resampled.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return cls(value, low, high)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        ends = "no interval" if math.isnan(self.low) else f"{self.low:.4f}, {self.high:.4f}"
        return f"{self.value:.4f} [{ends}]"


def n_units(groups: Iterable[Tensor]) -> int:
    """Units that a mean of separately resampled means rests on: one more than the sum of the groups' degrees of
    freedom, from the group of every value of each."""
    return 1 + sum(max(0, len(each.unique()) - 1) for each in groups)


def few_units(n: int, what: str) -> list[str]:
    """A note where intervals rest on few units."""
    if n >= FEW_UNITS:
        return []
    if n < 2:
        return [f"there are no intervals over {what}, of which there is one"]
    return [f"the intervals rest on {n} {what}; below {FEW_UNITS} they are too narrow"]


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

    The interval is that of other draws of values or ``groups``, not of other training seeds. Where all values agree it
    has no width; there is none of one value or group. Of fewer than ten it is too narrow, as no resample lies beyond
    the values: it covers 87 % with five normal values.
    """
    kept = ~values.isnan()
    own = None if groups is None else groups[kept]
    n = int(kept.sum()) if own is None else len(own.unique())
    return Interval.of(resampled_means(values[kept], seed, *names, groups=own), n)
