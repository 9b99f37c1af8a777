"""Exact selection of active latents from pre-activations, without sorting B·F values.

Ties are decided everywhere alike: larger value, then lower token, then lower latent. Only positive
pre-activations can be active, and a NaN never is. Shape letters: B tokens, F latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.kernels.latents import Latents, _from_sorted_flat
from monosema.kernels.reference import row_top_k_dense

_BLOCK = 32
"""Latents in one block of the two-stage search: small enough that k blocks are a small part of a row."""


def select_row_top_k(pre_BF: Tensor, k: int) -> Latents:
    """The k largest positive pre-activations of each token.

    Two stages, exact: the k blocks with the largest maxima hold a row's k largest values, so only k·block
    candidates are searched. Twin: ``reference.row_top_k_dense``.
    """
    n_tokens, d_sae = pre_BF.shape
    k = min(k, d_sae)
    wanted = min(k + 1, d_sae)  # one more than k shows whether the k-th value is tied
    if d_sae % _BLOCK == 0 and d_sae // _BLOCK >= 2 * wanted:
        blocks = pre_BF.view(n_tokens, d_sae // _BLOCK, _BLOCK)
        chosen = blocks.amax(dim=2).topk(wanted, dim=1, sorted=False).indices
        candidates = blocks.gather(1, chosen.unsqueeze(2).expand(-1, -1, _BLOCK)).view(n_tokens, -1)
        values, places = candidates.topk(wanted, dim=1)
        indices = chosen.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK
    else:
        values, indices = pre_BF.topk(wanted, dim=1)
    if wanted > k:
        tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > 0)
        if bool(tied.any()):
            return row_top_k_dense(pre_BF, k)
        indices = indices[:, :k]
    indices, _ = indices.sort(dim=1)
    values = pre_BF.gather(1, indices)
    if bool((values > 0).all()):
        crow = torch.arange(0, n_tokens * k + 1, k, dtype=torch.int32, device=pre_BF.device)
        return Latents(crow, indices.reshape(-1).int(), values.reshape(-1), d_sae, (n_tokens,))
    tokens = torch.arange(n_tokens, device=pre_BF.device).unsqueeze(1)
    positive = (values > 0).reshape(-1)
    flat = (tokens * d_sae + indices).reshape(-1)[positive]
    return _from_sorted_flat(flat, values.reshape(-1)[positive], n_tokens, d_sae)


def select_batch_top_k(pre_BF: Tensor, n_entries: int, guess: float | None = None) -> tuple[Latents, Tensor]:
    """The ``n_entries`` largest positive pre-activations of the batch, and the least of them (0-d tensor).

    ``guess`` is a value expected to lie near the answer (last step's): entries above it are collected in one pass
    and the search goes on among them, lowering the guess until they suffice. The result never depends on the guess.
    The returned threshold is the smallest value selected, or 0 where fewer than ``n_entries`` are positive.
    Twin: ``reference.batch_top_k_dense``.
    """
    n_tokens, d_sae = pre_BF.shape
    flat = pre_BF.reshape(-1)
    if n_entries == 0 or flat.numel() == 0:  # a fractional k on a small batch, or no tokens
        return _from_sorted_flat(flat[:0].long(), flat[:0], n_tokens, d_sae), flat.new_zeros(())
    bound = max(0.0, guess) if guess is not None else _sampled_bound(flat, n_entries)
    candidates = (flat > bound).nonzero().squeeze(1)
    while candidates.numel() < n_entries and bound > 0:
        largest = float(flat.amax())  # may be infinite or NaN: the comparison then ends the search
        bound = 0.5 * min(bound, largest) if bound > 1e-3 * largest > 0 else 0.0
        candidates = (flat > bound).nonzero().squeeze(1)
    values = flat[candidates]
    if candidates.numel() <= n_entries:
        least = values.min() if candidates.numel() == n_entries and n_entries > 0 else flat.new_zeros(())
        return _from_sorted_flat(candidates, values, n_tokens, d_sae), least
    least = values.kthvalue(values.numel() - n_entries + 1).values
    above = values > least
    tied = (values == least).nonzero().squeeze(1)[: n_entries - int(above.sum())]
    above[tied] = True
    return _from_sorted_flat(candidates[above], values[above], n_tokens, d_sae), least


def select_above(pre_BF: Tensor, threshold: Tensor | float) -> Latents:
    """Entries with ``pre > threshold`` (a number or ``[F]``) and ``pre > 0``, at their pre-activation values."""
    n_tokens, d_sae = pre_BF.shape
    mask = pre_BF > threshold
    if isinstance(threshold, Tensor) or threshold < 0:
        mask &= pre_BF > 0
    flat = mask.reshape(-1).nonzero().squeeze(1)
    return _from_sorted_flat(flat, pre_BF.reshape(-1)[flat], n_tokens, d_sae)


def _sampled_bound(flat: Tensor, n_entries: int) -> float:
    """A value that about 1.5 times ``n_entries`` of ``flat`` exceed, from an evenly spaced sample."""
    stride = max(1, flat.numel() // 65536)
    sample = flat[::stride]
    rank = min(sample.numel(), max(1, round(1.5 * n_entries / stride)))
    return max(0.0, float(sample.kthvalue(sample.numel() - rank + 1).values))
