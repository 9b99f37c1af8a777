"""How many latents fire, how strongly, and which never do.

A latent fires on a token where its value is not zero; a zero that is stored or was picked by a top-k is no firing.
``latents`` is a dense tensor ``[..., d_sae]`` or anything with the fields of :class:`SparseRows`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from monosema.core.errors import ShapeError
from monosema.metrics.checks import require_finite, wide
from monosema.metrics.scores import ratio

RELIABLE_DEAD_TOKENS = 100_000
"""On fewer tokens a latent that never fired may only be rare: the dead fraction is then no reliable number."""


@runtime_checkable
class SparseRows(Protocol):
    """Sparse latents in CSR form, as the coders return them."""

    @property
    def n_tokens(self) -> int:
        """Rows."""

    @property
    def d_sae(self) -> int:
        """Columns."""

    @property
    def crow(self) -> Tensor:
        """``[n_tokens + 1]`` int64: where each row starts in the two below."""

    @property
    def indices(self) -> Tensor:
        """``[nnz]`` integer: the latent of each entry."""

    @property
    def values(self) -> Tensor:
        """``[nnz]``: its value."""


def l0(latents: Tensor | SparseRows) -> float:
    """Mean over tokens of the number of latents that fire, in [0, d_sae]."""
    return SparsitySums.of(latents).l0


def l0_std(latents: Tensor | SparseRows) -> float:
    """Standard deviation over tokens of the number of latents that fire (of the population: divided by n)."""
    return SparsitySums.of(latents).l0_std


def l0_quantile(latents: Tensor | SparseRows, q: float) -> int:
    """The least k such that a fraction ``q`` of the tokens, and at least one, have at most k latents that fire.

    For ``q = 0`` that is the fewest that fire on any token.
    """
    return SparsitySums.of(latents).l0_quantile(q)


def share_above(density: Tensor, threshold: float) -> float:
    """The fraction of latents that fire on more than a fraction ``threshold`` of the tokens; in [0, 1]."""
    return ratio(int((density > threshold).sum()), density.numel())


def log10_density_histogram(density: Tensor) -> list[int]:
    """Latents by ``log10(density + 1e-10)``: 20 equal bins from -10 (never fired) to 0 (fires on every token)."""
    logs = log10_density(density).float().cpu().clamp(max=0)  # a density of 1 is a little above, and would be dropped
    return [int(count) for count in torch.histc(logs, bins=20, min=-10, max=0)]


def l1(latents: Tensor | SparseRows) -> float:
    """Mean over tokens of ``sum |f|`` over latents, in [0, inf); not weighted by decoder norms."""
    return SparsitySums.of(latents).l1


def firing_density(latents: Tensor | SparseRows) -> Tensor:
    """``[d_sae]`` float64 on the CPU: for each latent the fraction of tokens on which it fires, in [0, 1]."""
    return SparsitySums.of(latents).firing_density


def dead_fraction(latents: Tensor | SparseRows) -> float:
    """Fraction of latents that fire on none of the tokens, in [0, 1]; wants ``RELIABLE_DEAD_TOKENS`` tokens."""
    return SparsitySums.of(latents).dead_fraction


def n_alive(latents: Tensor | SparseRows) -> int:
    """Number of latents that fire on at least one of the tokens."""
    return SparsitySums.of(latents).n_alive


def log10_density(density: Tensor, floor: float = 1e-10) -> Tensor:
    """``log10(density + floor)`` of each latent, as SAELens stores it: a latent that never fired is at -10."""
    return torch.log10(wide(density) + floor)


@dataclass(frozen=True)
class SparsitySums:
    """Counts from which every sparsity metric follows; those of two sets of tokens add to those of both.

    Counts are integers and exact; ``absolute`` is float64.
    """

    n_tokens: int
    """Tokens counted."""
    firings: Tensor
    """``[d_sae]`` int64 on the CPU: tokens on which each latent fired."""
    l0_histogram: Tensor
    """``[largest L0 + 1]`` int64 on the CPU: tokens by the number of latents that fired."""
    absolute: float
    """Sum over tokens and latents of ``|f|``."""

    @classmethod
    def empty(cls, d_sae: int) -> SparsitySums:
        """The counts of no tokens."""
        return cls(0, torch.zeros(d_sae, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 0.0)

    @classmethod
    def of(cls, latents: Tensor | SparseRows) -> SparsitySums:
        """The counts of ``latents``, dense ``[..., d_sae]`` or sparse. Raises ``DataError`` where one is not finite."""
        if isinstance(latents, Tensor):
            return _dense_sums(latents)
        values = latents.values.detach()
        absolute = _absolute(values)
        fired = values != 0
        indices, per_token = latents.indices, latents.crow.diff()
        if not bool(fired.all()):
            tokens = torch.repeat_interleave(torch.arange(latents.n_tokens, device=values.device), per_token)
            indices, per_token = indices[fired], torch.bincount(tokens[fired], minlength=latents.n_tokens)
        return cls(
            n_tokens=latents.n_tokens,
            firings=torch.bincount(indices, minlength=latents.d_sae).cpu(),
            l0_histogram=torch.bincount(per_token, minlength=1).cpu(),
            absolute=absolute,
        )

    def __add__(self, other: SparsitySums) -> SparsitySums:
        if self.firings.shape != other.firings.shape:
            raise ShapeError(f"cannot add counts of {len(self.firings)} latents to those of {len(other.firings)}")
        return SparsitySums(
            n_tokens=self.n_tokens + other.n_tokens,
            firings=self.firings + other.firings,
            l0_histogram=_added(self.l0_histogram, other.l0_histogram),
            absolute=self.absolute + other.absolute,
        )

    @property
    def l0(self) -> float:
        """See :func:`l0`."""
        return ratio(int(self.firings.sum()), self.n_tokens)

    @property
    def l0_std(self) -> float:
        """See :func:`l0_std`."""
        total, counts = int(self.firings.sum()), torch.arange(len(self.l0_histogram))
        squared = int((counts * counts * self.l0_histogram).sum())
        return math.sqrt(ratio(self.n_tokens * squared - total * total, self.n_tokens**2))

    def l0_quantile(self, q: float) -> int:
        """See :func:`l0_quantile`."""
        return int((self.l0_histogram.cumsum(0) < max(q * self.n_tokens, min(1, self.n_tokens))).sum())

    @property
    def l1(self) -> float:
        """See :func:`l1`."""
        return ratio(self.absolute, self.n_tokens)

    @property
    def firing_density(self) -> Tensor:
        """See :func:`firing_density`."""
        return self.firings.to(torch.float64) / self.n_tokens

    @property
    def log10_density_histogram(self) -> tuple[int, ...]:
        """See :func:`log10_density_histogram`."""
        return tuple(log10_density_histogram(self.firing_density))

    def share_above(self, threshold: float) -> float:
        """See :func:`share_above`."""
        return share_above(self.firing_density, threshold)

    @property
    def n_alive(self) -> int:
        """See :func:`n_alive`."""
        return int((self.firings > 0).sum())

    @property
    def dead_fraction(self) -> float:
        """See :func:`dead_fraction`."""
        return 1.0 - ratio(self.n_alive, len(self.firings))

    @property
    def dead_fraction_reliable(self) -> bool:
        """Whether at least ``RELIABLE_DEAD_TOKENS`` tokens were counted."""
        return self.n_tokens >= RELIABLE_DEAD_TOKENS


def _dense_sums(latents: Tensor) -> SparsitySums:
    if latents.dim() == 0:
        raise ShapeError("dense latents must be [..., d_sae], got a single number")
    rows = latents.detach().reshape(-1, latents.shape[-1])
    fired = rows != 0
    per_token = fired.sum(1)
    return SparsitySums(
        n_tokens=rows.shape[0],
        firings=fired.sum(0).cpu(),
        l0_histogram=torch.bincount(per_token, minlength=1).cpu(),
        absolute=_absolute(rows),
    )


def _added(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two histograms, the shorter one with zeros behind it."""
    n = max(len(first), len(second))
    return torch.nn.functional.pad(first, (0, n - len(first))) + torch.nn.functional.pad(second, (0, n - len(second)))


def _absolute(values: Tensor) -> float:
    total = float(wide(values).abs().sum())
    if not math.isfinite(total):
        require_finite("latents", values)
    return total
