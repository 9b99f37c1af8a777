"""What each latent does on text: how strongly it fires, and in how many contexts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.metrics.checks import wide
from monosema.metrics.sparsity import SparseRows


@dataclass(frozen=True)
class LatentSums:
    """Sums of each latent over tokens; those of two sets of whole contexts add to those of both."""

    firings: Tensor
    """``[d_sae]`` int64 on the CPU: tokens on which it fired."""
    total: Tensor
    """``[d_sae]`` float64 on the CPU: the sum of its values."""
    largest: Tensor
    """``[d_sae]`` float64 on the CPU: its largest value in size; 0 where it never fired."""
    contexts: Tensor
    """``[d_sae]`` int64 on the CPU: contexts in which it fired; 0 where contexts are not known."""

    @classmethod
    def empty(cls, d_sae: int) -> LatentSums:
        """The sums of no tokens."""
        counts, values = torch.zeros(d_sae, dtype=torch.int64), torch.zeros(d_sae, dtype=torch.float64)
        return cls(counts, values, values, counts)

    @classmethod
    def of(cls, latents: SparseRows, contexts: Tensor | None = None) -> LatentSums:
        """Of sparse latents, the i-th token in the context numbered ``contexts[i]``."""
        d_sae = latents.d_sae
        per_token = latents.crow.diff().long()
        fired = latents.values.detach() != 0
        indices = latents.indices.long()[fired].cpu()
        values = wide(latents.values.detach()[fired]).cpu()
        total = torch.zeros(d_sae, dtype=torch.float64).index_add_(0, indices, values)
        largest = torch.zeros(d_sae, dtype=torch.float64).scatter_reduce_(0, indices, values.abs(), "amax")
        n_contexts = torch.zeros(d_sae, dtype=torch.int64)
        if contexts is not None:
            tokens = torch.arange(latents.n_tokens, device=per_token.device).repeat_interleave(per_token)[fired].cpu()
            pairs = torch.unique(contexts.cpu().long()[tokens] * d_sae + indices)
            n_contexts = torch.bincount(pairs % d_sae, minlength=d_sae)
        return cls(torch.bincount(indices, minlength=d_sae), total, largest, n_contexts)

    def __add__(self, other: LatentSums) -> LatentSums:
        return LatentSums(
            self.firings + other.firings,
            self.total + other.total,
            torch.maximum(self.largest, other.largest),
            self.contexts + other.contexts,
        )

    @property
    def mean_value(self) -> Tensor:
        """``[d_sae]`` float64: the mean of its values where it fires; NaN where it never did."""
        return self.total / self.firings

    @property
    def consistent_activation(self) -> Tensor:
        """``[d_sae]`` float64: firings per context in which it fires, at least 1; NaN where it never did.

        SAELens' ``consistent_activation_heuristic``: high for latents that fire all along a text.
        """
        contexts = self.contexts.to(torch.float64)
        return self.firings / contexts.masked_fill(contexts == 0, torch.nan)
