"""Exact selection of active latents from pre-activations, without sorting B·F values.

Ties are decided everywhere alike: larger value, then lower token, then lower latent. Only positive pre-activations
can be active, and a NaN never is. Shape letters: B tokens, F latents, G blocks of a row, C candidates.

Latents may compete by more than their pre-activation: by its magnitude (``signed``), or by it times a weight of the
latent (decoder norms). Such scores are made where they are looked at, never for all of ``[B, F]``.

The search goes through blocks of neighbouring latents: one pass takes each block's maximum, and only blocks whose
maximum reaches a lower bound are read again. On CUDA Triton programs do so (``triton_select``); elsewhere, and for
widths that do not divide into blocks, ``torch.topk`` and masks give the same entries.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from monosema.kernels.dispatch import runs_triton
from monosema.kernels.latents import Latents, _from_sorted_flat, latents_from_mask, positions
from monosema.kernels.reference import row_top_k_dense

_SHIFT = 5
_BLOCK = 1 << _SHIFT
"""Latents in a block: small enough that the blocks read again are a small part of all."""


Parts = Callable[[], Iterator[Tensor]]
"""Gives the pre-activations of consecutive groups of tokens, ``[b, F]`` each; the same whenever it is called. The
memory of one may be that of the next."""


@dataclass(frozen=True)
class Scores:
    """What latents compete by: ``pre``, or ``|pre|`` where ``signed``, times ``weights_F ≥ 0`` where given."""

    pre_BF: Tensor
    weights_F: Tensor | None = None
    signed: bool = False

    @property
    def are_pre_activations(self) -> bool:
        return self.weights_F is None and not self.signed

    def of(self, values: Tensor, latents: Tensor) -> Tensor:
        """Of entries: their pre-activations and their latents, shaped alike."""
        sizes = values.abs() if self.signed else values
        return sizes if self.weights_F is None else sizes * self.weights_F[latents]

    def dense(self) -> Tensor:
        """Of all entries: ``[B, F]``."""
        sizes = self.pre_BF.abs() if self.signed else self.pre_BF
        return sizes if self.weights_F is None else sizes * self.weights_F

    def activations(self, chosen: Latents) -> Latents:
        """``chosen`` with its pre-activations in place of scores."""
        if self.are_pre_activations:
            return chosen
        return chosen.with_values(self.pre_BF.reshape(-1)[chosen.rows() * chosen.d_sae + chosen.indices.long()])


def select_row_top_k(
    pre_BF: Tensor, k: int, weights_F: Tensor | None = None, *, signed: bool = False, may_fill: bool = False
) -> Latents:
    """The entries of each token with the k largest positive scores. Twin: ``reference.row_top_k_dense`` of the scores.

    ``may_fill`` allows entries of value 0 where a token has fewer than k, so that nothing need wait for the host.

    k blocks have a score that reaches the k-th largest of what blocks have at least, so the k-th largest score does
    too: it bounds the search.
    """
    scores = Scores(pre_BF, weights_F, signed)
    n_tokens, d_sae = pre_BF.shape
    k = min(k, d_sae)
    if runs_triton(pre_BF) and pre_BF.dtype == torch.float32 and _programs().fits_rows(d_sae, k):
        with torch.cuda.device_of(pre_BF):
            filled: Latents = _programs().row_top_k(pre_BF, k, weights_F, signed=signed)
        return filled if may_fill else _without_zeros(filled)
    if not _has_blocks(pre_BF) or d_sae // _BLOCK < 2 * k or n_tokens == 0:
        return scores.activations(_row_top_k(scores.dense(), k))
    blocks = _Blocks.of(scores)
    if bool(blocks.most_BG.isnan().any()):
        return scores.activations(row_top_k_dense(scores.dense(), k))
    found = _entries_from(scores, blocks, _kth_largest(blocks.least_BG, k).unsqueeze(1))
    rows = torch.div(found.flat, d_sae, rounding_mode="floor")
    kept = _k_largest_of_each_row(found.scores, rows, n_tokens, k)
    return _from_sorted_flat(found.flat.index_select(0, kept), found.values.index_select(0, kept), n_tokens, d_sae)


def select_batch_top_k(
    pre_BF: Tensor,
    n_entries: int,
    guess: float | None = None,
    weights_F: Tensor | None = None,
    *,
    signed: bool = False,
    may_fill: bool = False,
) -> tuple[Latents, Tensor]:
    """The entries with the ``n_entries`` largest positive scores of the batch, and the least of these (0-d tensor).

    ``guess`` is a value expected to lie near the answer (last step's): entries from there on are collected in one pass
    and the search goes on among them, lowering the guess until they suffice. The result never depends on the guess.
    The returned threshold is the smallest score selected, or 0 where fewer than ``n_entries`` are positive.
    ``may_fill`` as in ``select_row_top_k``. Twin: ``reference.batch_top_k_dense`` of the scores.
    """
    shape = (pre_BF.shape[0], pre_BF.shape[1])
    return select_batch_top_k_of_parts(
        lambda: iter([pre_BF]), shape, n_entries, guess, weights_F, signed=signed, may_fill=may_fill
    )


def select_batch_top_k_of_parts(
    parts: Parts,
    shape: tuple[int, int],
    n_entries: int,
    guess: float | None = None,
    weights_F: Tensor | None = None,
    *,
    signed: bool = False,
    may_fill: bool = False,
) -> tuple[Latents, Tensor]:
    """The same of a batch of ``shape`` (B, F) that comes in parts.

    They are asked for once where the guess was low enough (always on CUDA), and again each time that it is lowered.
    """
    n_tokens, d_sae = shape
    once = parts()
    first = next(once)
    once = itertools.chain([first], once)
    if n_entries == 0 or n_tokens * d_sae == 0:  # a fractional k on a small batch, or no tokens
        nothing = first.new_zeros(())
        return _from_sorted_flat(nothing.new_zeros(0).long(), nothing.new_zeros(0), n_tokens, d_sae), nothing
    if runs_triton(first) and first.dtype == torch.float32:
        with torch.cuda.device_of(first):
            chosen = _programs().batch_top_k(once, n_entries, weights_F, signed=signed)
        filled = _from_sorted_flat(chosen.flat, chosen.values, n_tokens, d_sae)
        least = chosen.least if filled.nnz == n_entries else chosen.least.new_zeros(())
        return filled if may_fill else _without_zeros(filled), least
    if guess is not None:
        bound = max(0.0, guess)
    else:
        bound = _sampled_bound(Scores(first, weights_F, signed), n_entries * len(first) / n_tokens)
    found, largest = _candidates(once, bound, weights_F, signed)
    while found.scores.numel() < n_entries and bound > 0:
        # the largest may be infinite or NaN: the comparison then ends the search
        bound = 0.5 * min(bound, largest) if bound > 1e-3 * largest > 0 else 0.0
        found, largest = _candidates(parts(), bound, weights_F, signed)
    values, flat = found.scores, found.flat
    if values.numel() <= n_entries:
        least = values.min() if values.numel() == n_entries else values.new_zeros(())
        return _from_sorted_flat(flat, found.values, n_tokens, d_sae), least
    least = values.kthvalue(values.numel() - n_entries + 1).values
    above = values > least
    tied = positions(values == least)[: n_entries - int(above.sum())]
    above[tied] = True
    kept = positions(above)
    return _from_sorted_flat(flat.index_select(0, kept), found.values.index_select(0, kept), n_tokens, d_sae), least


def select_above(pre_BF: Tensor, threshold: Tensor | float) -> Latents:
    """Entries with ``pre > threshold`` (a number or ``[F]``) and ``pre > 0``, at their pre-activation values."""
    return entries_above(pre_BF, threshold.clamp(min=0) if isinstance(threshold, Tensor) else max(0.0, threshold))


def entries_above(pre_BF: Tensor, bound: Tensor | float) -> Latents:
    """Entries with ``pre > bound`` (a number or ``[F]``), positive or not, at their pre-activation values."""
    n_tokens, d_sae = pre_BF.shape
    if pre_BF.device.type != "cpu" or pre_BF.dtype not in (torch.float32, torch.float64):
        return latents_from_mask(pre_BF, pre_BF > bound)
    mask = np.greater(pre_BF.detach().numpy(), bound.detach().numpy() if isinstance(bound, Tensor) else bound)
    flat = torch.from_numpy(np.flatnonzero(mask))
    return _from_sorted_flat(flat, pre_BF.reshape(-1).index_select(0, flat), n_tokens, d_sae)


@dataclass(frozen=True)
class _Entries:
    """Entries of a ``[B, F]`` in row order."""

    flat: Tensor
    """[C] int64: token · F + latent, ascending."""
    values: Tensor
    """[C] pre-activations."""
    scores: Tensor
    """[C]."""


@dataclass(frozen=True)
class _Blocks:
    """Bounds of the largest score of each block; without weights both are that score."""

    least_BG: Tensor
    most_BG: Tensor

    @staticmethod
    def of(scores: Scores) -> _Blocks:
        blocks = scores.pre_BF.view(scores.pre_BF.shape[0], -1, _BLOCK)
        if scores.signed:
            least, most = blocks.aminmax(dim=2)
            maxima = torch.maximum(-least, most)
        else:
            maxima = blocks.amax(dim=2)
        if scores.weights_F is None:
            return _Blocks(maxima, maxima)
        least_G, most_G = scores.weights_F.view(-1, _BLOCK).aminmax(dim=1)
        return _Blocks(maxima * least_G, maxima * most_G)  # of negative maxima neither matters


def _programs() -> ModuleType:
    return importlib.import_module("monosema.kernels.triton_select")


def _without_zeros(latents: Latents) -> Latents:
    return latents.where(latents.values != 0, latents.values)


def _has_blocks(pre_BF: Tensor) -> bool:
    return (
        pre_BF.device.type == "cpu"
        and pre_BF.dtype in (torch.float32, torch.float64)
        and pre_BF.shape[1] % _BLOCK == 0
        and pre_BF.is_contiguous()
    )


def _entries_from(scores: Scores, blocks: _Blocks | None, bound: Tensor | float) -> _Entries:
    """The entries with positive scores that are at least ``bound`` (a number or ``[B, 1]``)."""
    numbers = torch.finfo(scores.pre_BF.dtype)
    least = numbers.smallest_normal * numbers.eps  # the least positive number: what reaches it is positive
    bound = bound.clamp(min=least) if isinstance(bound, Tensor) else max(bound, least)
    if blocks is None:
        dense = scores.dense()
        flat = positions((dense >= bound).reshape(-1))
        return _Entries(flat, scores.pre_BF.reshape(-1).index_select(0, flat), dense.reshape(-1).index_select(0, flat))
    most_BG = blocks.most_BG
    hidden = np.less(most_BG.numpy(), bound.numpy() if isinstance(bound, Tensor) else bound)
    chosen = torch.from_numpy(np.flatnonzero(np.logical_not(hidden)))  # where a NaN hides the largest, too
    rows = torch.div(chosen, most_BG.shape[1], rounding_mode="floor")
    values = scores.pre_BF.view(-1, _BLOCK).index_select(0, chosen)
    sizes = values
    if not scores.are_pre_activations:
        of_block = None if scores.weights_F is None else scores.weights_F.view(-1, _BLOCK)
        sizes = values.abs() if scores.signed else values
        sizes = sizes if of_block is None else sizes * of_block.index_select(0, chosen - rows * most_BG.shape[1])
    # NumPy compares six times as fast as torch does
    reached = np.greater_equal(sizes.numpy(), bound[rows].numpy() if isinstance(bound, Tensor) else bound)
    inside = torch.from_numpy(np.flatnonzero(reached))
    flat = chosen.index_select(0, inside >> _SHIFT) * _BLOCK + (inside & (_BLOCK - 1))
    found = sizes.view(-1).index_select(0, inside)
    return _Entries(flat, found if sizes is values else values.view(-1).index_select(0, inside), found)


def _candidates(
    parts: Iterable[Tensor], bound: float, weights_F: Tensor | None, signed: bool
) -> tuple[_Entries, float]:
    """``_entries_from`` of all parts, and their largest score; a bound of it where a part has none that large."""
    found, largest, start = [], [], 0
    for pre_BF in parts:
        scores = Scores(pre_BF, weights_F, signed)
        blocks = _Blocks.of(scores) if _has_blocks(pre_BF) else None
        part = _entries_from(scores, blocks, bound)
        found.append(_Entries(part.flat + start, part.values, part.scores))
        start += pre_BF.numel()
        if part.scores.numel() > 0:
            largest.append(part.scores.amax())
        else:
            largest.append(scores.dense().amax() if blocks is None else blocks.most_BG.amax())
    flat, values, scored = (torch.cat([getattr(each, name) for each in found]) for name in ("flat", "values", "scores"))
    return _Entries(flat, values, scored), float(torch.stack(largest).amax())


def _k_largest_of_each_row(values: Tensor, rows: Tensor, n_rows: int, k: int) -> Tensor:
    """Positions of the k largest of each row's positive ``values [C]``; the earlier one of equals."""
    counts = torch.bincount(rows, minlength=n_rows)
    first = counts.cumsum(0) - counts
    place = torch.arange(values.numel()) - first[rows]
    table = values.new_zeros(n_rows, max(int(counts.max()), k))
    table[rows, place] = values
    least = _kth_largest(table, k)[rows]  # 0 where a row has fewer than k
    keep = values > least
    equal = positions(values == least)
    n_above = torch.bincount(rows[keep], minlength=n_rows)
    of_row = rows[equal]
    rank = torch.arange(equal.numel()) - torch.searchsorted(of_row, torch.arange(n_rows))[of_row]
    keep[equal[rank < (k - n_above)[of_row]]] = True
    return positions(keep)


def _kth_largest(table: Tensor, k: int) -> Tensor:
    """The k-th largest value of each row of ``table``."""
    place = table.shape[1] - k
    return torch.from_numpy(np.partition(table.numpy(), place, axis=1)[:, place].copy())


def _row_top_k(pre_BF: Tensor, k: int) -> Latents:
    n_tokens, d_sae = pre_BF.shape
    values, indices = pre_BF.topk(min(k + 1, d_sae), dim=1)  # one more than k shows whether the k-th value is tied
    indices = indices[:, :k]
    if k < d_sae:
        tied = ((values[:, k - 1] == values[:, k]) & (values[:, k] > 0)).nonzero().squeeze(1)
        if tied.numel() > 0:  # a stable sort keeps the lower latent; only the rows concerned are sorted
            indices[tied] = pre_BF[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    indices, _ = indices.sort(dim=1)
    values = pre_BF.gather(1, indices)
    tokens = torch.arange(n_tokens, device=pre_BF.device).unsqueeze(1)
    kept = positions((values > 0).reshape(-1))
    return _from_sorted_flat((tokens * d_sae + indices).reshape(-1)[kept], values.reshape(-1)[kept], n_tokens, d_sae)


def _sampled_bound(scores: Scores, n_entries: float) -> float:
    """A value that about 1.5 times ``n_entries`` scores exceed, from an evenly spaced sample."""
    flat = scores.pre_BF.reshape(-1)
    stride = max(1, flat.numel() // 65536)
    latents = torch.arange(0, flat.numel(), stride, device=flat.device) % scores.pre_BF.shape[1]
    sample = scores.of(flat[::stride], latents)
    rank = min(sample.numel(), max(1, round(1.5 * n_entries / stride)))
    return max(0.0, float(sample.kthvalue(sample.numel() - rank + 1).values))
