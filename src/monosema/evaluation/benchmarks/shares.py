"""Bootstrap intervals: how much a score would move with other rows of the same kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of a score over bootstrap resamples (percentile bootstrap); NaN where nothing was defined."""

    low: float
    """2.5 % quantile."""
    high: float
    """97.5 % quantile."""

    def __str__(self) -> str:
        return f"[{self.low:.4f}, {self.high:.4f}]"


def percentile_interval(scores: Tensor) -> Interval:
    """The interval of the scores ``[n_resamples]`` that are not NaN."""
    defined = scores.double()[~scores.isnan()]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = torch.quantile(defined, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high)


def resample_shares(n: int, n_resamples: int, generator: torch.Generator) -> Tensor:
    """``[n_resamples, n]`` float64: the share of each of n rows in resamples of n rows drawn with replacement.

    ``shares @ values`` are the means over the resamples.
    """
    if n_resamples < 1:
        raise ConfigError(f"n_resamples must be at least 1, got {n_resamples}")
    drawn = torch.randint(n, (n_resamples, n), generator=generator)
    return torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full((n_resamples, n), 1 / n, dtype=torch.float64)
    )
