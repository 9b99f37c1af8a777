"""Exact selection as Triton programs, for CUDA: nothing waits for the host.

Scores are compared by their bits: those of positive float32 numbers ascend with the numbers. What is not positive, NaN
too, has the key 0. Both selections first take blocks of neighbouring latents: of the m largest keys, each lies in one
of the m blocks with the largest maxima (of equal maxima the earlier), so what is looked at twice is ``m · BLOCK`` keys.
A row's search runs in one program's registers; the batch's finds the m-th largest key digit by digit from histograms.

A choice has as many entries as were asked for: where too few scores are positive it is filled up with others of value
0.

``TRITON_INTERPRET=1`` runs the same programs on the CPU. Shape letters: B tokens, F latents, G blocks of a row, N keys,
m chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from monosema.kernels.latents import Latents

BLOCK = 32
"""Latents in a block."""
WIDEST_ROW = 16_384
"""Numbers that a program searches in its registers; wider choices are left to the search through histograms."""
_TILE = 1024
"""Keys that a program of the search through histograms holds."""
_DIGITS = ((20, 2048), (10, 1024), (0, 1024))
"""Lowest bit and number of values of a key's digits."""
_BINS = 2048


def row_top_k(pre_BF: Tensor, k: int, weights_F: Tensor | None, *, signed: bool) -> Latents:
    """The k entries of each token with the largest scores. ``fits_rows`` must hold."""
    n_tokens, d_sae = pre_BF.shape
    pre_BF, k = pre_BF.contiguous(), min(k, d_sae)
    maxima = _block_maxima(pre_BF, weights_F, signed)
    n_blocks = maxima.shape[1]
    n_chosen = min(k, n_blocks)
    blocks = torch.empty(n_tokens, n_chosen, dtype=torch.int32, device=pre_BF.device)
    indices = torch.empty(n_tokens * k, dtype=torch.int32, device=pre_BF.device)
    values = torch.empty(n_tokens * k, dtype=pre_BF.dtype, device=pre_BF.device)
    if n_tokens > 0 and k > 0:
        width = triton.next_power_of_2(n_blocks)
        _row_blocks[(n_tokens,)](blocks, maxima, n_blocks, n_chosen, WIDTH=width, num_warps=_warps(width))
        width = triton.next_power_of_2(n_chosen)
        _row_entries[(n_tokens,)](
            indices,
            values,
            blocks,
            pre_BF,
            pre_BF if weights_F is None else weights_F,
            d_sae,
            n_chosen,
            k,
            WIDTH=width,
            BLOCK=BLOCK,
            WEIGHTED=weights_F is not None,
            SIGNED=signed,
            num_warps=_warps(width * BLOCK),
        )
    crow = k * torch.arange(n_tokens + 1, dtype=torch.int32, device=pre_BF.device)
    return Latents(crow, indices, values, d_sae, (n_tokens,))


def fits_rows(d_sae: int, k: int) -> bool:
    """Whether a row's search fits into a program's registers."""
    n_blocks = triton.cdiv(d_sae, BLOCK)
    return max(n_blocks, triton.next_power_of_2(max(1, min(k, n_blocks))) * BLOCK) <= WIDEST_ROW


@dataclass(frozen=True)
class Chosen:
    """The entries of a ``[B, F]`` with the largest scores."""

    flat: Tensor
    """[m] int64: token · F + latent, ascending."""
    values: Tensor
    """[m] pre-activations; 0 where the score is not positive."""
    keys: Tensor
    """[m] int32: bits of the scores."""

    @property
    def least(self) -> Tensor:
        """The least score, 0 where one is not positive: 0-d float32."""
        return self.keys.amin().view(torch.float32)


def batch_top_k(parts: Iterable[Tensor], n_entries: int, weights_F: Tensor | None, *, signed: bool) -> Chosen:
    """The ``n_entries`` entries (all, where there are fewer) with the largest scores of groups of tokens in order."""
    found, start = [], 0
    for pre_BF in parts:
        most = _largest_entries(pre_BF, min(n_entries, pre_BF.numel()), weights_F, signed)
        found.append(Chosen(most.flat + start, most.values, most.keys))
        start += pre_BF.numel()
    if len(found) == 1:
        return found[0]
    flat, values, keys = (torch.cat([getattr(each, name) for each in found]) for name in ("flat", "values", "keys"))
    places = largest_keys(keys, min(n_entries, keys.numel()))
    return Chosen(flat[places], values[places], keys[places])


def _largest_entries(pre_BF: Tensor, n_entries: int, weights_F: Tensor | None, signed: bool) -> Chosen:
    pre_BF = pre_BF.contiguous()
    d_sae = pre_BF.shape[1]
    maxima = _block_maxima(pre_BF, weights_F, signed)
    n_blocks = maxima.shape[1]
    blocks = largest_keys(maxima.view(-1), min(n_entries, maxima.numel()))
    keys = torch.empty(len(blocks), BLOCK, dtype=torch.int32, device=pre_BF.device)
    _keys_of_blocks[(triton.cdiv(len(blocks), _TILE // BLOCK),)](
        keys,
        blocks,
        pre_BF,
        pre_BF if weights_F is None else weights_F,
        len(blocks),
        n_blocks,
        d_sae,
        BLOCK=BLOCK,
        BLOCKS=_TILE // BLOCK,
        WEIGHTED=weights_F is not None,
        SIGNED=signed,
    )
    places = largest_keys(keys.view(-1), n_entries)
    block = blocks[places // BLOCK]
    flat = block // n_blocks * d_sae + block % n_blocks * BLOCK + places % BLOCK
    found = keys.view(-1)[places]
    return Chosen(flat, torch.where(found > 0, pre_BF.view(-1)[flat], 0), found)


def largest_keys(keys_N: Tensor, m: int) -> Tensor:
    """Places of the m largest keys, ascending int64; the earlier of equals. Negative keys must not be needed."""
    n = keys_N.numel()
    counts = torch.zeros(len(_DIGITS), _BINS, dtype=torch.int32, device=keys_N.device)
    grid = (triton.cdiv(n, _TILE),)
    for number, (shift, size) in enumerate(_DIGITS):
        _histogram[grid](counts, keys_N, n, m, SHIFT=shift, SIZE=size, NUMBER=number, BINS=_BINS, TILE=_TILE)
    in_tiles = torch.empty(2, grid[0], dtype=torch.int32, device=keys_N.device)
    _count_tiles[grid](in_tiles, counts, keys_N, n, m, grid[0], BINS=_BINS, TILE=_TILE)
    before = in_tiles.cumsum(1, dtype=torch.int32) - in_tiles
    places = torch.empty(m, dtype=torch.int64, device=keys_N.device)
    _place[grid](places, before, counts, keys_N, n, m, grid[0], BINS=_BINS, TILE=_TILE)
    return places


def _warps(width: int) -> int:
    """Warps of a program that holds ``width`` numbers."""
    return 4 if width <= 2048 else 8 if width <= 8192 else 16


def _block_maxima(pre_BF: Tensor, weights_F: Tensor | None, signed: bool) -> Tensor:
    """``[B, G]`` int32: the largest key of each block."""
    n_tokens, d_sae = pre_BF.shape
    n_blocks = triton.cdiv(d_sae, BLOCK)
    maxima = torch.empty(n_tokens, n_blocks, dtype=torch.int32, device=pre_BF.device)
    if maxima.numel() > 0:
        held = min(64, triton.next_power_of_2(n_blocks))
        _maxima[(n_tokens, triton.cdiv(n_blocks, held))](
            maxima,
            pre_BF,
            pre_BF if weights_F is None else weights_F,
            d_sae,
            n_blocks,
            BLOCKS=held,
            BLOCK=BLOCK,
            WEIGHTED=weights_F is not None,
            SIGNED=signed,
        )
    return maxima


@triton.jit
def _keys(values, weights, latents, there, WEIGHTED: tl.constexpr, SIGNED: tl.constexpr):
    """Bits of scores; 0 where not positive, -1 where nothing is."""
    scores = tl.abs(values) if SIGNED else values
    if WEIGHTED:
        scores = scores * tl.load(weights + latents, mask=there, other=0)
    return tl.where(there, tl.where(scores > 0, scores.to(tl.int32, bitcast=True), 0), -1)


@triton.jit
def _mth_largest(keys, m):
    """The largest T that m keys reach; 0 where fewer than m are positive."""
    found = tl.full([], 0, tl.int32)
    for step in tl.static_range(31):
        trial = found + (1 << (30 - step))
        found = tl.where(tl.sum((keys >= trial).to(tl.int32)) >= m, trial, found)
    return found


@triton.jit
def _largest(keys, m):
    """Mask of the m largest keys of a row of them, the earlier of equals."""
    least = _mth_largest(keys, m)
    above, equal = keys > least, keys == least
    rank = tl.cumsum(equal.to(tl.int32), 0)
    return above | (equal & (rank <= m - tl.sum(above.to(tl.int32))))


@triton.jit
def _maxima(
    maxima, pre, weights, d_sae, n_blocks,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    latents = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = latents < d_sae
    values = tl.load(pre + token * d_sae + latents, mask=there, other=0)
    largest = tl.max(_keys(values, weights, latents, there, WEIGHTED, SIGNED), axis=1)
    tl.store(maxima + token * n_blocks + block, largest, mask=block < n_blocks)


@triton.jit
def _row_blocks(blocks, maxima, n_blocks, n_chosen, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, WIDTH)
    keys = tl.load(maxima + token * n_blocks + block, mask=block < n_blocks, other=-1)
    chosen = _largest(keys, n_chosen)
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(blocks + token * n_chosen + place, block, mask=chosen)


@triton.jit
def _row_entries(
    indices, values_out, blocks, pre, weights, d_sae, n_chosen, k,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, WIDTH * BLOCK)
    known = entry // BLOCK < n_chosen
    latents = tl.load(blocks + token * n_chosen + entry // BLOCK, mask=known, other=0) * BLOCK + entry % BLOCK
    there = known & (latents < d_sae)
    values = tl.load(pre + token * d_sae + latents, mask=there, other=0)
    keys = _keys(values, weights, latents, there, WEIGHTED, SIGNED)
    chosen = _largest(keys, k)
    place = token * k + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(indices + place, latents, mask=chosen)
    tl.store(values_out + place, tl.where(keys > 0, values, 0.0), mask=chosen)


@triton.jit
def _keys_of_blocks(
    keys, blocks, pre, weights, n_chosen, n_blocks, d_sae,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WEIGHTED: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    known = row < n_chosen
    block = tl.load(blocks + row, mask=known, other=0)
    latents = (block % n_blocks)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = known[:, None] & (latents < d_sae)
    values = tl.load(pre + (block // n_blocks)[:, None] * d_sae + latents, mask=there, other=0)
    found = _keys(values, weights, latents, there, WEIGHTED, SIGNED)
    places = row.to(tl.int64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(keys + places, found, mask=known[:, None])


@triton.jit
def _digit(counts, m, SIZE: tl.constexpr):
    """From counts of a digit's values: the largest value that m keys reach, and how many of m are left for its keys."""
    value = tl.arange(0, SIZE)
    each = tl.load(counts + value)
    reached = tl.sum(each) - tl.cumsum(each, 0) + each  # keys with this value or a larger one
    found = tl.maximum(tl.max(tl.where(reached >= m, value, -1)), 0)
    return found, m - tl.sum(tl.where(value > found, each, 0))


@triton.jit
def _least(counts, m, BINS: tl.constexpr):
    """The m-th largest key, and how many of those equal to it are taken."""
    first, left = _digit(counts, m, 2048)
    second, left = _digit(counts + BINS, left, 1024)
    third, left = _digit(counts + 2 * BINS, left, 1024)
    return (first << 20) + (second << 10) + third, left


@triton.jit
def _histogram(
    counts, keys, n, m,
    SHIFT: tl.constexpr, SIZE: tl.constexpr, NUMBER: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    key = tl.load(keys + place, mask=place < n, other=-1)
    counted = key >= 0
    if NUMBER == 1:
        first, _ = _digit(counts, m, 2048)
        counted = counted & (key >> 20 == first)
    if NUMBER == 2:
        first, left = _digit(counts, m, 2048)
        second, _ = _digit(counts + BINS, left, 1024)
        counted = counted & (key >> 10 == (first << 10) + second)
    digit = tl.where(counted, (key >> SHIFT) & (SIZE - 1), SIZE)  # the upper half is not looked at
    found = tl.histogram(digit, 2 * SIZE)
    value = tl.arange(0, 2 * SIZE)
    tl.atomic_add(counts + NUMBER * BINS + value, found, mask=(value < SIZE) & (found > 0), sem="relaxed")


@triton.jit
def _count_tiles(in_tiles, counts, keys, n, m, n_tiles, BINS: tl.constexpr, TILE: tl.constexpr):
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    key = tl.load(keys + place, mask=place < n, other=-1)
    least, _ = _least(counts, m, BINS)
    tl.store(in_tiles + tile, tl.sum((key > least).to(tl.int32)))
    tl.store(in_tiles + n_tiles + tile, tl.sum((key == least).to(tl.int32)))


@triton.jit
def _place(places, before, counts, keys, n, m, n_tiles, BINS: tl.constexpr, TILE: tl.constexpr):
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    key = tl.load(keys + place, mask=place < n, other=-1)
    least, n_equal = _least(counts, m, BINS)
    n_above, n_tied = tl.load(before + tile), tl.load(before + n_tiles + tile)
    equal = key == least
    chosen = (key > least) | (equal & (n_tied + tl.cumsum(equal.to(tl.int32), 0) <= n_equal))
    first = n_above + tl.minimum(n_tied, n_equal)
    tl.store(places + first + tl.cumsum(chosen.to(tl.int32), 0) - 1, place, mask=chosen)
