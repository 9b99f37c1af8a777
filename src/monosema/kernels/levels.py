"""Nested reconstructions from one set of entries: prefixes of the dictionary, or budgets of active latents.

Each entry of a token belongs to one level, and level g's reconstruction is the sum over the entries of levels up to g.
A token with G levels is G virtual tokens, one for each level's own entries; decoding those and summing up over levels
gives all reconstructions for the price of one, and the gradients are those of the virtual tokens.

Shape letters: B tokens, G levels, D width, E active entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monosema.core.devices import constant
from monosema.kernels.bags import decode
from monosema.kernels.latents import Latents


@dataclass(frozen=True)
class Levels:
    """Entries regrouped by (token, level)."""

    latents: Latents
    """The same entries over B·G virtual tokens; within one, indices ascend."""
    order: Tensor | None
    """[E] int64: place in the original order of each regrouped entry; None where the order is unchanged."""
    n_levels: int
    """G."""
    widths: tuple[int, ...] | None = None
    """Where levels are prefixes of the dictionary, their sizes."""

    def gather(self, values: Tensor) -> Tensor:
        """``values [E]`` of the original order in the regrouped one."""
        return values if self.order is None else values[self.order]

    def scatter(self, values: Tensor) -> Tensor:
        """``values [E]`` of the regrouped order in the original one."""
        return values if self.order is None else torch.empty_like(values).index_copy_(0, self.order, values)


def prefix_levels(latents: Latents, widths: Sequence[int]) -> Levels:
    """Level g holds latents ``widths[g-1] ≤ i < widths[g]``; ``widths`` ascend and end with ``d_sae``."""
    bounds = constant(tuple(widths), latents.indices.dtype, latents.indices.device)
    level = torch.searchsorted(bounds, latents.indices, right=True)
    return Levels(_virtual(latents, level, len(widths)), None, len(widths), tuple(widths))


def budget_levels(latents: Latents, budgets: Sequence[int]) -> Levels:
    """Level g holds a token's entries of rank ``budgets[g-1] ≤ rank < budgets[g]`` by magnitude, the last one the rest.

    Ranks fall with ``|value|``; of equals the lower latent comes first.
    """
    rows = latents.rows()
    by_size = latents.values.abs().argsort(descending=True, stable=True)
    by_row = by_size[rows[by_size].argsort(stable=True)]
    rank = torch.empty_like(by_row)
    rank[by_row] = torch.arange(latents.nnz, device=rank.device) - latents.crow[:-1].long()[rows[by_row]]
    bounds = constant(tuple(budgets), rank.dtype, rank.device)
    level = torch.searchsorted(bounds, rank, right=True).clamp(max=len(budgets) - 1)
    order = (rows * len(budgets) + level).argsort(stable=True)
    regrouped = replace(latents, indices=latents.indices[order], values=latents.values[order])
    return Levels(_virtual(regrouped, level[order], len(budgets)), order, len(budgets))


def decode_levels(levels: Levels, weight_FD: Tensor) -> Tensor:
    """``x̂[t, g] = Σ f_e weight[i_e]`` over the entries of token t in levels up to g: ``[B, G, D]``."""
    parts = decode(levels.latents, weight_FD).reshape(-1, levels.n_levels, weight_FD.shape[1])
    for level in range(1, levels.n_levels):
        parts[:, level] += parts[:, level - 1]
    return parts


def level_gradient(g_out_BGD: Tensor) -> Tensor:
    """What reaches a level's own entries: the sum of the gradients of that level and all above it, ``[B·G, D]``."""
    sums = torch.empty_like(g_out_BGD)
    sums[:, -1] = g_out_BGD[:, -1]
    for level in range(g_out_BGD.shape[1] - 2, -1, -1):
        torch.add(g_out_BGD[:, level], sums[:, level + 1], out=sums[:, level])
    return sums.reshape(-1, g_out_BGD.shape[2])


def _virtual(latents: Latents, level: Tensor, n_levels: int) -> Latents:
    n_virtual = latents.n_tokens * n_levels
    rows = latents.rows() * n_levels + level  # they ascend
    crow = torch.searchsorted(rows, torch.arange(n_virtual + 1, device=rows.device), out_int32=True)
    return replace(latents, crow=crow, leading_shape=(n_virtual,))
