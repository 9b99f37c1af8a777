"""How sure a figure is: 95 % confidence intervals by leaving out groups of documents, one after the other.

Tokens of one document are alike, so the document is what is drawn at random, not the token. Documents are dealt into
at most ``N_GROUPS`` groups, in turn; where there are fewer documents, each is a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.metrics.checks import wide

N_GROUPS = 256
"""The spread of as many figures is known to within 5 % (``1 / sqrt(2 N)``)."""

Z = 1.959963984540054
"""97.5 % of a normal distribution lie below."""


def jackknife_interval(value: float, left_out: Tensor) -> tuple[float, float] | None:
    """The 95 % interval of a figure, ``value -+ 1.96 sqrt((g - 1) / g sum_i (theta_i - mean theta)^2)``.

    ``left_out [g]`` is the figure ``theta_i`` of all groups but the i-th. The delete-one-group jackknife (Efron 1982,
    chapter 3): for a mean of groups of one size it is ``1.96 s / sqrt(g)`` with their standard deviation s. None of
    fewer than two groups, or where a figure is not defined.
    """
    g = len(left_out)
    if g < 2 or not math.isfinite(value) or not bool(left_out.isfinite().all()):
        return None
    spread = wide(left_out).var(correction=0).item() * (g - 1)
    return value - Z * math.sqrt(spread), value + Z * math.sqrt(spread)


@dataclass(frozen=True)
class GroupSums:
    """Sums over the tokens of each group; those of two sets of tokens add to those of both."""

    sums: Tensor
    """``[g, k]`` float64 on the CPU."""

    @classmethod
    def empty(cls, n_groups: int, n_columns: int) -> GroupSums:
        """The sums of no tokens."""
        return cls(torch.zeros(n_groups, n_columns, dtype=torch.float64))

    @classmethod
    def of(cls, terms: Tensor, groups: Tensor, n_groups: int) -> GroupSums:
        """Of the tokens' ``terms [n, k]``, the i-th in group ``groups[i]``."""
        terms = wide(terms)
        add = sums_by_adding if terms.device.type == "cpu" else sums_by_product
        return cls(add(terms, groups.to(terms.device), n_groups).cpu())

    def __add__(self, other: GroupSums) -> GroupSums:
        return GroupSums(self.sums + other.sums)

    @property
    def left_out(self) -> Tensor:
        """``[g', k]``: what is summed without each group that has tokens (a token count is the first column)."""
        own = self.sums[self.sums[:, 0] > 0]
        return self.sums.sum(0) - own


def sums_by_adding(terms: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """``[n_groups, k]``: the float64 rows of ``terms [n, k]`` added up by group, in their order."""
    return terms.new_zeros(n_groups, terms.shape[1]).index_add_(0, groups, terms)


def sums_by_product(terms: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """The same as a product, which a GPU computes in one order every time: its additions by index come in any."""
    return torch.nn.functional.one_hot(groups, n_groups).to(terms.dtype).T @ terms


def left_out_variation(sums: GroupSums) -> Tensor:
    """``[g']``: ``sum ||x - mean||^2`` without each group, from columns ``[1, ||x - c||^2, x - c]`` for any one ``c``.

    The mean is that of the tokens left, so the figure without a group is what it would be had the group not been there.
    """
    rest = sums.left_out
    return rest[:, 1] - rest[:, 2:].square().sum(1) / rest[:, 0]
