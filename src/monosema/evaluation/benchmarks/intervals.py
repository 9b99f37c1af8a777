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
    """A value and its 95 % interval."""

    value: float
    """The value measured; NaN where there was nothing to measure."""
    low: float
    """The lower end."""
    high: float
    """The upper end."""

    def __str__(self) -> str:
        return "undefined" if math.isnan(self.value) else f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_mean(values: Tensor, seed: int, groups: Tensor | None = None) -> Interval:
    """The mean of ``values [n]`` with a percentile bootstrap interval (Efron 1979) of 1,000 resamples.

    Values that are NaN do not count. With ``groups [n]`` (int64), whole groups are resampled, as what depends on each
    other must be: the tokens of a document. The interval is that of other draws of values or groups, not of other
    training seeds; from fewer than some 20 of them it is too narrow, and where all values agree it has no width.
    """
    kept = ~values.isnan()
    values = values[kept].double().cpu()
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    group = torch.arange(len(values)) if groups is None else groups.cpu()[kept.cpu()].unique(return_inverse=True)[1]
    n = int(group.max()) + 1
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, group, values)
    counts = torch.bincount(group, minlength=n).double()
    generator = random_stream(seed, "benchmark", "bootstrap")
    means = []
    step = max(1, min(RESAMPLES, _AT_A_TIME // n))
    for start in range(0, RESAMPLES, step):
        drawn = torch.randint(n, (min(step, RESAMPLES - start), n), generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    tail = (1 - LEVEL) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(float(values.mean()), low, high)
