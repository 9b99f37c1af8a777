"""Per-latent numbers over a stream of tokens: how often, how strongly, and how the strengths are spread.

Shape letters: E active entries of a batch, F latents, N bins of a histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NO_EXPONENT = -(2**20)


@dataclass(frozen=True, eq=False)
class LatentNumbers:
    """One number per latent and definition. "Usable" tokens are those that are not special."""

    n_tokens: int
    """Usable tokens read."""
    count: Tensor
    """[F] int64: usable tokens on which the latent's activation is not zero."""
    maximum: Tensor
    """[F] float32: largest activation; 0 for a latent that never fired."""
    mean: Tensor
    """[F] float64: mean activation over the tokens on which it fired; 0 for a latent that never fired."""
    bin_width: Tensor
    """[F] float64: width ``w`` of the histogram's bins: the smallest power of two with ``maximum < N w``."""
    histogram: Tensor
    """[F, N] int64: bin ``j`` counts the tokens with ``j w <= activation < (j + 1) w``, activations of 0 left out."""

    @property
    def density(self) -> Tensor:
        """[F] float64: ``count / n_tokens``."""
        return self.count.to(torch.float64) / self.n_tokens


class LatentStatistics:
    """Accumulates ``LatentNumbers``; the result does not depend on how the stream is cut into batches.

    The bin width of a histogram is a power of two that doubles, bins merging in pairs, when a larger activation comes.
    Scaling by powers of two is exact, so every activation ends in the bin that the final width puts it in, although
    the maximum is not known before the end.
    """

    def __init__(self, d_sae: int, n_bins: int) -> None:
        self.n_tokens = 0
        self.count = torch.zeros(d_sae, dtype=torch.int64)
        self.total = torch.zeros(d_sae, dtype=torch.float64)
        self.maximum = torch.zeros(d_sae, dtype=torch.float32)
        self.histogram = torch.zeros(d_sae, n_bins, dtype=torch.int64)
        self.exponent = torch.full((d_sae,), _NO_EXPONENT, dtype=torch.int64)

    def update(self, latents_E: Tensor, values_E: Tensor, largest_F: Tensor, n_tokens: int) -> None:
        """Add the positive entries of ``n_tokens`` usable tokens; changes every accumulator in place.

        ``largest_F`` float32 holds each latent's largest value among the entries, 0 where it has none.
        """
        d_sae, n_bins = self.histogram.shape
        self.n_tokens += n_tokens
        self.count += torch.bincount(latents_E, minlength=d_sae)
        wide_E = values_E.to(torch.float64)
        self.total += torch.bincount(latents_E, weights=wide_E, minlength=d_sae)
        self.maximum = torch.maximum(self.maximum, largest_F)
        self._widen(bin_exponent(self.maximum, n_bins))
        bins_E = torch.floor(wide_E * torch.exp2(-self.exponent.to(torch.float64))[latents_E]).to(torch.int64)
        self.histogram += torch.bincount(latents_E * n_bins + bins_E, minlength=d_sae * n_bins).view(d_sae, n_bins)

    def numbers(self) -> LatentNumbers:
        """What was accumulated so far."""
        fired = self.count > 0
        return LatentNumbers(
            n_tokens=self.n_tokens,
            count=self.count,
            maximum=self.maximum,
            mean=torch.where(fired, self.total / self.count.clamp(min=1), 0.0),
            bin_width=torch.where(fired, torch.exp2(self.exponent.clamp(min=-1000).to(torch.float64)), 0.0),
            histogram=self.histogram,
        )

    def _widen(self, exponent_F: Tensor) -> None:
        """Merge bins so that each latent's width is ``2 ** exponent``; exponents never shrink."""
        n_bins = self.histogram.shape[1]
        changed = (exponent_F > self.exponent).nonzero().squeeze(1)
        shift = (exponent_F - self.exponent)[changed].clamp(max=62)
        target = torch.arange(n_bins) >> shift.unsqueeze(1)
        old = self.histogram[changed]
        self.histogram[changed] = torch.zeros_like(old).scatter_add_(1, target, old)
        self.exponent[changed] = exponent_F[changed]


def bin_exponent(maximum_F: Tensor, n_bins: int) -> Tensor:
    """[F] int64: the smallest ``e`` with ``maximum < n_bins * 2**e``; a very small number where the maximum is 0."""
    largest = maximum_F.to(torch.float64)
    # a float32 divided in float64: no rounding takes the quotient to another power of two
    exponent = torch.frexp(largest / n_bins).exponent.to(torch.int64)
    return torch.where(largest > 0, exponent, _NO_EXPONENT)
