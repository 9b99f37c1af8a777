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
from monosema.metrics.figure import ANY, Range
from monosema.metrics.student import t_quantile

N_GROUPS = 256
"""The spread of as many figures is known to within 5 % (``1 / sqrt(2 N)``)."""

FEW_DOCUMENTS = 10
"""With fewer documents an interval is wide and depends on how they are distributed: reports have a note."""


def jackknife_interval(value: float, left_out: Tensor, within: Range = ANY) -> tuple[float, float] | None:
    """The 95 % interval of a figure, ``value -+ t sqrt((g - 1) / g sum_i (theta_i - mean theta)^2)``.

    ``left_out [g]`` is the figure ``theta_i`` of all groups but the i-th; t is Student's for ``g - 1`` degrees of
    freedom (12.7 for two groups, 1.97 for 256). The delete-one-group jackknife (Efron 1982, chapter 3): for a mean of
    groups of one size it is ``t s / sqrt(g)`` with their standard deviation s. ``within`` is the figure's own range,
    which the interval is cut to. None of fewer than two groups, or where a figure is not defined.
    """
    g = len(left_out)
    if g < 2 or not math.isfinite(value) or not bool(left_out.isfinite().all()):
        return None
    half = t_quantile(g - 1) * math.sqrt(wide(left_out).var(correction=0).item() * (g - 1))
    low, high = within
    return min(max(value - half, low), value), max(min(value + half, high), value)


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
    def n_with_tokens(self) -> int:
        """Groups that have tokens (a token count is the first column)."""
        return int((self.sums[:, 0] > 0).sum())

    @property
    def left_out(self) -> Tensor:
        """``[g', k]``: what is summed without each group that has tokens."""
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
