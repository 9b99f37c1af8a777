"""The contexts on which each latent fires most strongly, found in one pass with memory that does not grow with it.

Shape letters: B contexts of a batch, E active entries, F latents, K contexts kept per latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_COMPACT_FROM = 2**20


@dataclass(frozen=True)
class Entries:
    """Active entries of a batch (or of the kept contexts), in no particular order."""

    latent: Tensor
    """[E] int64."""
    context: Tensor
    """[E] int64: number of the context in its split."""
    position: Tensor
    """[E] int64: position in the context."""
    value: Tensor
    """[E] float32: the activation, positive."""

    def __getitem__(self, chosen: Tensor) -> Entries:
        return Entries(self.latent[chosen], self.context[chosen], self.position[chosen], self.value[chosen])

    def __len__(self) -> int:
        return self.latent.numel()


@dataclass(frozen=True, eq=False)
class Windows:
    """Up to K contexts per latent, strongest first, each with the latent's activations in it. A window is a slot
    ``f * K + k``; slots that no context fills hold -1 and no entries."""

    context: Tensor
    """[F, K] int64: number of the context in its split, or -1."""
    maximum: Tensor
    """[F, K] float32: the latent's largest activation in that context; 0 where there is no context."""
    position: Tensor
    """[F, K] int32: where that is; the first position among equals, -1 where there is no context."""
    crow: Tensor
    """[F * K + 1] int64: entries of slot s are ``crow[s]:crow[s + 1]``."""
    entry_position: Tensor
    """[E] int32: position in the context, ascending within a slot."""
    entry_value: Tensor
    """[E] float32: the activation there."""


class BestContexts:
    """Keeps the K contexts with the largest maxima of each latent, and the latent's activations in them.

    Larger maximum first, then the earlier context; contexts must come in order. Memory is ``O(F K)`` lists plus the
    entries of contexts in them.
    """

    def __init__(self, d_sae: int, n_kept: int) -> None:
        self.maximum = torch.zeros(d_sae, n_kept, dtype=torch.float32)
        self.context = torch.full((d_sae, n_kept), -1, dtype=torch.int64)
        self._pool: list[Entries] = []
        self._compact_at = _COMPACT_FROM

    def update(self, entries: Entries, peaks_BF: Tensor, first_context: int) -> None:
        """Merge the contexts ``first_context, first_context + 1, …``, whose largest activations are ``peaks_BF``."""
        n_contexts, n_kept = peaks_BF.shape[0], self.context.shape[1]
        # Only latents with a context above their weakest kept one change; an equal one came later and stays out.
        changed = (peaks_BF.amax(0) > self.maximum[:, -1]).nonzero().squeeze(1)
        numbers = torch.arange(first_context, first_context + n_contexts)
        values = torch.cat([self.maximum[changed], peaks_BF[:, changed].T], dim=1)
        contexts = torch.cat([self.context[changed], numbers.expand(len(changed), -1)], dim=1)
        values, order = values.sort(dim=1, descending=True, stable=True)
        values, contexts = values[:, :n_kept], contexts.gather(1, order[:, :n_kept])
        contexts = torch.where(values > 0, contexts, -1)
        self.maximum[changed], self.context[changed] = values, contexts

        is_new = contexts >= first_context
        entered = torch.zeros_like(peaks_BF, dtype=torch.bool)
        entered[contexts[is_new] - first_context, changed.unsqueeze(1).expand_as(contexts)[is_new]] = True
        self._pool.append(entries[entered[entries.context - first_context, entries.latent]])
        if sum(map(len, self._pool)) > self._compact_at:
            kept = self._kept_entries()
            self._pool = [kept]
            self._compact_at = max(_COMPACT_FROM, 2 * len(kept))

    def windows(self) -> Windows:
        """What is kept."""
        d_sae, n_kept = self.context.shape
        entries = self._kept_entries()
        slot = entries.latent * n_kept + self._places(entries)
        span = int(entries.position.max()) + 1 if len(entries) else 1
        slot, order = (slot * span + entries.position).sort()
        slot, entries = torch.div(slot, span, rounding_mode="floor"), entries[order]
        crow = torch.zeros(d_sae * n_kept + 1, dtype=torch.int64)
        crow[1:] = torch.bincount(slot, minlength=d_sae * n_kept).cumsum(0)
        at_peak = entries.value == self.maximum.flatten()[slot]
        position = torch.full((d_sae * n_kept,), span, dtype=torch.int64)
        position.scatter_reduce_(0, slot[at_peak], entries.position[at_peak], "amin")
        filled = self.context >= 0
        return Windows(
            context=self.context,
            maximum=self.maximum,
            position=torch.where(filled, position.view(d_sae, n_kept), -1).to(torch.int32),
            crow=crow,
            entry_position=entries.position.to(torch.int32),
            entry_value=entries.value,
        )

    def _places(self, entries: Entries) -> Tensor:
        """[E] int64: the place of each entry's context in its latent's list; in parts, to bound the [part, K] mask."""
        parts = zip(entries.latent.split(2**20), entries.context.split(2**20), strict=True)
        return torch.cat([(self.context[latent] == context.unsqueeze(1)).int().argmax(1) for latent, context in parts])

    def _kept_entries(self) -> Entries:
        """The pooled entries whose context is still in its latent's list."""
        pool = Entries(*(torch.cat(parts) for parts in zip(*map(_columns, self._pool), strict=True)))
        span = int(self.context.max()) + 1
        latents = torch.arange(self.context.shape[0]).unsqueeze(1)
        kept = (latents * span + self.context)[self.context >= 0]
        inside = pool.context < span
        return pool[inside & torch.isin(pool.latent * span + pool.context, kept)]


def _columns(entries: Entries) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return entries.latent, entries.context, entries.position, entries.value
