"""Firing statistics that fall out of the selection, kept on the coder's device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monosema.metrics.sparsity import log10_density_histogram

WINDOW_TOKENS = 500_000
"""Firing densities are over the newest one to two windows of so many tokens."""


class FiringStatistics(nn.Module):
    """Tokens since each latent fired, and firing counts over a sliding window."""

    tokens_since_fired: Tensor
    fired: Tensor
    window_counts: Tensor
    window_tokens: Tensor
    last_counts: Tensor
    last_tokens: Tensor

    def __init__(self, d_sae: int):
        super().__init__()
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("fired", torch.zeros(d_sae, dtype=torch.bool))
        self.register_buffer("window_counts", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("last_counts", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("window_tokens", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_tokens", torch.zeros((), dtype=torch.int64))

    def update_(self, counts_F: Tensor, n_tokens: int, ok: Tensor) -> None:
        """Add one batch in place: ``counts_F [F]`` firings of each latent among ``n_tokens``.

        ``ok`` is a 0-d bool, False where the step was skipped: then nothing changes.
        """
        counts_F, n_seen = counts_F * ok, n_tokens * ok
        active = counts_F > 0
        self.tokens_since_fired.add_(n_seen).masked_fill_(active, 0)
        self.fired |= active
        full = (self.window_tokens >= WINDOW_TOKENS) & ok
        for current, last in ((self.window_counts, self.last_counts), (self.window_tokens, self.last_tokens)):
            last.copy_(torch.where(full, current, last))
            current.mul_(~full)
        self.window_counts.add_(counts_F)
        self.window_tokens.add_(n_seen)

    def density(self) -> Tensor:
        """[F] float64: share of the window's tokens on which each latent fired."""
        tokens = (self.window_tokens + self.last_tokens).clamp(min=1)
        return (self.window_counts + self.last_counts).double() / tokens

    def log10_density(self) -> Tensor:
        """[F] float32: ``log10(density + 1e-10)``, what ``sparsity.safetensors`` holds."""
        return (self.density() + 1e-10).log10().float()

    def figures(self, dead_after: int) -> dict[str, float | list[int]]:
        """What is logged; see ``docs/metrics.md``."""
        since, density, log10 = self.tokens_since_fired, self.density(), self.log10_density().double()
        return {
            "n_dead": int((since >= dead_after).sum()),
            "dead_fraction": float((since >= dead_after).double().mean()),
            "never_fired_fraction": float((~self.fired).double().mean()),
            "mean_tokens_since_fired": float(since.double().mean()),
            "below_1e-5_fraction": float((density < 1e-5).double().mean()),
            "below_1e-6_fraction": float((density < 1e-6).double().mean()),
            "mean_log10_density": float(log10.mean()),
            "log10_density_histogram": log10_density_histogram(density),
        }
