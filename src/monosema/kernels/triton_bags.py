"""The sparse kernels of ``bags`` as Triton programs, for CUDA.

Both weight gradients and the decode are one kernel, a weighted bag of table rows for each row of a compressed list; the
gradient with respect to the activations is the other. Sums run in float32 (float64 of float64), in the order of the
entries and without atomics: the same bits every time. Nothing waits for the host.

``TRITON_INTERPRET=1`` runs the same programs on the CPU, which is how they are tested without a GPU. Shape letters:
R rows of the result, N rows of the table, D width, E entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from monosema.kernels.latents import Latents

LONGEST = 512
"""Entries that one program sums up. Longer bags (latents active on many tokens) are cut, and their pieces added."""
_SPLIT = 4
"""Programs that share a token's entries in ``sampled_products``."""


def bag(indices: Tensor, values: Tensor, offsets: Tensor, table_ND: Tensor) -> Tensor:
    """``out[r] = Σ_e values_e · table[indices_e]`` over entries ``offsets[r]:offsets[r + 1]``: ``[R, D]``."""
    table, values = table_ND.contiguous(), values.contiguous()
    out = torch.empty(offsets.numel() - 1, table.shape[1], dtype=_sum_dtype(table), device=table.device)
    with torch.cuda.device_of(out):
        _launch_bag(out, table, indices, values, offsets[:-1], offsets[1:], longest=LONGEST)
        if n_long := indices.numel() // LONGEST:
            cut = _cut(offsets, n_long)
            pieces = out.new_zeros(len(cut.starts), out.shape[1])
            _launch_bag(pieces, table, indices, values, cut.starts, cut.ends, longest=LONGEST)
            each = torch.arange(len(pieces), dtype=torch.int32, device=out.device)
            ones = pieces.new_ones(len(pieces))
            _launch_bag(out, pieces, each, ones, cut.first[:-1], cut.first[1:], longest=len(pieces), rows=cut.rows)
    return out


def sampled_products(latents: Latents, left_BD: Tensor, weight_FD: Tensor) -> Tensor:
    """``⟨left[t_e], weight[i_e]⟩`` for each entry: ``[E]``."""
    left, weight = left_BD.contiguous(), weight_FD.contiguous()
    out = torch.empty(latents.nnz, dtype=_sum_dtype(weight), device=weight.device)
    if latents.nnz > 0:
        sizes = {**_blocks(weight.shape[1]), "SPLIT": _SPLIT, "SUM": _SUM[out.dtype]}
        with torch.cuda.device_of(out):
            _sampled_programs[(latents.n_tokens, _SPLIT)](
                out, left, weight, latents.indices, latents.crow, weight.shape[1], **sizes
            )
    return out


_SUM = {torch.float32: tl.float32, torch.float64: tl.float64}


def _sum_dtype(table: Tensor) -> torch.dtype:
    return torch.float64 if table.dtype == torch.float64 else torch.float32


def _blocks(width: int) -> dict[str, int]:
    """Columns and entries that a program holds at once: about 2,048 numbers."""
    columns = min(256, max(16, triton.next_power_of_2(width)))
    return {"COLUMNS": columns, "ENTRIES": min(32, 2048 // columns)}


def _launch_bag(
    out: Tensor,
    table: Tensor,
    indices: Tensor,
    values: Tensor,
    starts: Tensor,
    ends: Tensor,
    *,
    longest: int,
    rows: Tensor | None = None,
) -> None:
    """Bag r of entries ``starts[r]:ends[r]`` into ``out[rows[r]]``; not where it is longer, or the row negative."""
    blocks, width = _blocks(table.shape[1]), table.shape[1]
    if len(starts) > 0 and width > 0:
        grid = (len(starts), triton.cdiv(width, blocks["COLUMNS"]))
        given: tuple[Any, ...] = (starts if rows is None else rows, starts, ends, width, longest)
        _bag_programs[grid](
            out, table, indices, values, *given, **blocks, HAS_ROWS=rows is not None, SUM=_SUM[out.dtype]
        )


@dataclass(frozen=True)
class _Cut:
    """Long bags in pieces; a place that is not needed has row -1 and no piece, or a piece without entries."""

    rows: Tensor
    """[n_long]: which bags are long."""
    first: Tensor
    """[n_long + 1]: pieces ``first[i]:first[i + 1]`` are those of ``rows[i]``."""
    starts: Tensor
    """[2 n_long]: first entry of each piece."""
    ends: Tensor
    """[2 n_long]: one past its last entry."""


def _cut(offsets: Tensor, n_long: int) -> _Cut:
    """At most ``n_long`` bags are longer than ``LONGEST``, and they have at most twice as many pieces."""
    offsets = offsets.long()
    lengths = offsets.diff()
    is_long = lengths > LONGEST
    place = torch.where(is_long, is_long.cumsum(0) - 1, n_long)  # all others share one more place
    numbers = torch.arange(len(lengths), device=offsets.device)
    rows = numbers.new_full((n_long + 1,), -1).index_put_((place,), numbers)[:-1]
    used = torch.arange(n_long, device=offsets.device) < is_long.sum()
    rows = torch.where(used, rows, -1)
    n_pieces = torch.where(used, (lengths[rows] + LONGEST - 1).div(LONGEST, rounding_mode="floor"), 0)
    first = torch.cat([n_pieces.new_zeros(1), n_pieces.cumsum(0)])
    piece = torch.arange(2 * n_long, device=offsets.device)
    owner = torch.searchsorted(first[1:].contiguous(), piece, right=True).clamp(max=n_long - 1)
    row = rows[owner].clamp(min=0)
    starts = offsets[row] + (piece - first[owner]) * LONGEST
    ends = torch.minimum(starts + LONGEST, offsets[row + 1])
    needed = piece < first[-1]
    return _Cut(rows, first, torch.where(needed, starts, 0), torch.where(needed, ends, 0))


@triton.jit
def _bag_programs(
    out, table, indices, values, rows, starts, ends, width, longest,
    COLUMNS: tl.constexpr, ENTRIES: tl.constexpr, HAS_ROWS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    bag_id = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    start, end = tl.load(starts + bag_id), tl.load(ends + bag_id)
    row = tl.load(rows + bag_id).to(tl.int64) if HAS_ROWS else bag_id.to(tl.int64)
    if (end - start <= longest) & (row >= 0):
        total = tl.zeros([COLUMNS], SUM)
        for begin in range(start, end, ENTRIES):
            entry = begin + tl.arange(0, ENTRIES)
            there = entry < end
            index = tl.load(indices + entry, mask=there, other=0).to(tl.int64)
            value = tl.load(values + entry, mask=there, other=0).to(SUM)
            mask = there[:, None] & inside[None, :]
            block = tl.load(table + index[:, None] * width + columns[None, :], mask=mask, other=0).to(SUM)
            total += tl.sum(value[:, None] * block, axis=0)
        tl.store(out + row * width + columns, total, mask=inside)


@triton.jit
def _sampled_programs(
    out, left, weight, indices, crow, width,
    COLUMNS: tl.constexpr, ENTRIES: tl.constexpr, SPLIT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    start, end = tl.load(crow + token), tl.load(crow + token + 1)
    for begin in range(start + tl.program_id(1) * ENTRIES, end, SPLIT * ENTRIES):
        entry = begin + tl.arange(0, ENTRIES)
        there = entry < end
        index = tl.load(indices + entry, mask=there, other=0).to(tl.int64)
        total = tl.zeros([ENTRIES], SUM)
        for column in range(0, width, COLUMNS):
            columns = column + tl.arange(0, COLUMNS)
            inside = columns < width
            of_token = tl.load(left + token * width + columns, mask=inside, other=0).to(SUM)
            mask = there[:, None] & inside[None, :]
            block = tl.load(weight + index[:, None] * width + columns[None, :], mask=mask, other=0).to(SUM)
            total += tl.sum(block * of_token[None, :], axis=1)
        tl.store(out + entry, total, mask=there)
