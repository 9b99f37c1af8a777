"""``Latents``: sparse activations in one canonical order.

Shape letters: B tokens, F latents (``d_sae``), E active entries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import ShapeError


@dataclass(frozen=True)
class Latents:
    """Active latents of B tokens as compressed sparse rows, in canonical order.

    Rows follow the tokens; within a row the latent indices ascend. Two equal sets of activations are therefore
    equal tensors, and sums over them are taken in one order (order changes bits).

    Where a selection was filled up to a fixed size (``may_fill``), an entry of value 0 is not active.
    """

    crow: Tensor
    """[B + 1] int32: entries of token t are ``crow[t]:crow[t + 1]``."""
    indices: Tensor
    """[E] int32: latent index of each entry."""
    values: Tensor
    """[E]: activation of each entry, in the coder's compute dtype."""
    d_sae: int
    """F, the number of latents."""
    leading_shape: tuple[int, ...]
    """Shape of the tokens, ``(batch, position)`` for contexts; its product is B."""

    @property
    def n_tokens(self) -> int:
        return self.crow.numel() - 1

    @property
    def nnz(self) -> int:
        """E, the number of entries."""
        return self.indices.numel()

    def rows(self) -> Tensor:
        """[E] int64: the token of each entry."""
        tokens = torch.arange(self.n_tokens, device=self.crow.device)
        return tokens.repeat_interleave(self.crow.diff(), output_size=self.nnz)

    def counts(self) -> Tensor:
        """[F] int64: number of entries of each latent."""
        if self.indices.device.type == "cpu":
            return torch.bincount(self.indices, minlength=self.d_sae)
        ones = torch.ones_like(self.indices, dtype=torch.int64)  # bincount would wait for the device
        return ones.new_zeros(self.d_sae).index_add_(0, self.indices, ones)

    def firings(self) -> Tensor:
        """[F] int64: number of tokens on which each latent is not 0."""
        active = (self.values != 0).long()
        return active.new_zeros(self.d_sae).index_add_(0, self.indices, active)

    def with_values(self, values: Tensor) -> Latents:
        """The same entries with other values ``[E]``."""
        if values.shape != self.values.shape:
            raise ShapeError(f"expected {tuple(self.values.shape)} values, got {tuple(values.shape)}")
        return replace(self, values=values)

    def where(self, kept: Tensor, values: Tensor) -> Latents:
        """The entries where the mask ``kept [E]`` is true, with their part of ``values [E]``."""
        return self.at(positions(kept), values)

    def at(self, chosen: Tensor, values: Tensor) -> Latents:
        """The entries at the ascending places ``chosen``, with their part of ``values [E]``."""
        crow = torch.searchsorted(chosen, self.crow.long(), out_int32=True)
        indices, values = self.indices.index_select(0, chosen), values.index_select(0, chosen)
        return replace(self, crow=crow, indices=indices, values=values)

    def to_dense(self) -> Tensor:
        """``[*leading_shape, F]`` with zeros where inactive."""
        dense = self.values.new_zeros(self.n_tokens, self.d_sae)
        dense[self.rows(), self.indices.long()] = self.values
        return dense.reshape(*self.leading_shape, self.d_sae)


def latents_from_dense(dense: Tensor) -> Latents:
    """The nonzero entries of ``dense [..., F]``."""
    flat = dense.reshape(-1, dense.shape[-1])
    return replace(latents_from_mask(flat, flat != 0), leading_shape=tuple(dense.shape[:-1]))


def latents_from_mask(values_BF: Tensor, mask_BF: Tensor) -> Latents:
    """The entries of ``values_BF`` where ``mask_BF`` is true."""
    n_tokens, d_sae = values_BF.shape
    flat = positions(mask_BF.reshape(-1))
    return _from_sorted_flat(flat, values_BF.reshape(-1).index_select(0, flat), n_tokens, d_sae)


def positions(mask: Tensor) -> Tensor:
    """Where the 1-d ``mask`` is true, ascending int64; on the CPU by NumPy, which is four times as fast."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def latents_from_pairs(tokens: Tensor, latents: Tensor, values: Tensor, n_tokens: int, d_sae: int) -> Latents:
    """Entries given as (token, latent, value) triples in any order; no pair may occur twice."""
    flat, order = (tokens.long() * d_sae + latents.long()).sort()
    return _from_sorted_flat(flat, values[order], n_tokens, d_sae)


def _from_sorted_flat(flat: Tensor, values: Tensor, n_tokens: int, d_sae: int) -> Latents:
    tokens = torch.div(flat, d_sae, rounding_mode="floor")
    indices = (flat - tokens * d_sae).int()
    starts = torch.arange(n_tokens + 1, device=flat.device) * d_sae
    crow = torch.searchsorted(flat, starts, out_int32=True)
    return Latents(crow, indices, values, d_sae, (n_tokens,))


def flat_tokens(x: Tensor, width: int, name: str) -> Tensor:
    """``x [..., width]`` as ``[B, width]``; ``ShapeError`` for another width."""
    if x.ndim == 0 or x.shape[-1] != width:
        raise ShapeError(f"{name}: expected [..., {width}], got {list(x.shape)}")
    return x.reshape(math.prod(x.shape[:-1]), width)


def concatenate(groups: Sequence[Latents]) -> Latents:
    """Several groups of latents of the same tokens side by side, numbered through."""
    if len(groups) == 1:
        return groups[0]
    offsets = [0, *itertools.accumulate(group.d_sae for group in groups)]
    tokens = torch.cat([group.rows() for group in groups])
    indices = torch.cat([group.indices + start for group, start in zip(groups, offsets[:-1], strict=True)])
    values = torch.cat([group.values for group in groups])
    joined = latents_from_pairs(tokens, indices, values, groups[0].n_tokens, offsets[-1])
    return replace(joined, leading_shape=groups[0].leading_shape)


def stack_tokens(parts: Sequence[Latents]) -> Latents:
    """The latents of consecutive groups of tokens as those of all."""
    if len(parts) == 1:
        return parts[0]
    starts = [0, *itertools.accumulate(part.nnz for part in parts)]
    rows = [parts[0].crow[:1], *(part.crow[1:] + start for part, start in zip(parts, starts[:-1], strict=True))]
    n_tokens = sum(part.n_tokens for part in parts)
    indices, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("indices", "values"))
    return Latents(torch.cat(rows), indices, values, parts[0].d_sae, (n_tokens,))


def split(latents: Latents, widths: Sequence[int]) -> list[Latents]:
    """The inverse of ``concatenate``: groups of ``widths`` latents."""
    if len(widths) == 1:
        return [latents]
    rows, starts = latents.rows(), [0, *itertools.accumulate(widths)]
    groups = []
    for start, width in zip(starts[:-1], widths, strict=True):
        kept = positions((latents.indices >= start) & (latents.indices < start + width))
        flat = rows[kept] * width + (latents.indices[kept] - start).long()
        group = _from_sorted_flat(flat, latents.values[kept], latents.n_tokens, width)
        groups.append(replace(group, leading_shape=latents.leading_shape))
    return groups
