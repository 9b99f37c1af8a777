"""Activations made from a known dictionary, so that what a coder learned can be compared with the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosema.core.errors import ConfigError
from monosema.core.seeds import random_stream

CHUNK = 65_536
"""Rows drawn at a time; a draw does not depend on how many rows are asked for beyond whole chunks."""


@dataclass(frozen=True, kw_only=True)
class SyntheticFeatures:
    """Rows ``x = Σ_i a_i d_i``: sparse non-negative ``a`` on fixed random unit directions ``d``, with no noise.

    Feature i fires with a probability ``p_i`` that falls as ``(i + 1)^(-skew)``; a feature that fires has a magnitude
    uniform between 0.5 and 1.5. Which features fire together is the ``kind``:

    - ``"independent"``: each by itself.
    - ``"correlated"``: those of a group share a Gaussian: feature i fires where
      ``√correlation · g_group + √(1 − correlation) · e_i`` exceeds its ``1 − p_i`` quantile, so that ``p_i`` stays.
    - ``"hierarchical"``: the first of a group is a parent. When it fires, one of its children fires as well with
      probability ``child_probability``, each equally likely; a child never fires alone or with another of its group.

    A kind's expected number of active features is ``l0``.

    Raises:
        ConfigError: a count below 1, groups that do not fill ``n_features``, or ``l0`` so high that some ``p_i > 1``.
    """

    kind: Literal["independent", "correlated", "hierarchical"] = "independent"
    """How features depend on each other."""
    d_in: int = 128
    """Width of a row."""
    n_features: int = 256
    """Number of features."""
    l0: float = 5.0
    """Expected number of features in a row."""
    skew: float = 0.5
    """How fast frequencies fall; 0 for equal ones."""
    group_size: int = 4
    """Features in a group, where the kind has groups."""
    correlation: float = 0.5
    """Of the Gaussians of one group."""
    child_probability: float = 0.5
    """That a firing parent has a firing child."""
    seed: int = 0
    """Decides directions; rows are drawn from a seed of their own."""

    def __post_init__(self) -> None:
        if self.kind not in ("independent", "correlated", "hierarchical"):
            raise ConfigError(f"kind must be 'independent', 'correlated' or 'hierarchical', got {self.kind!r}")
        if min(self.d_in, self.n_features, self.group_size) < 1 or not self.l0 > 0:
            raise ConfigError("d_in, n_features and group_size must be at least 1, and l0 above 0")
        if not (0 <= self.correlation < 1 and 0 <= self.child_probability <= 1):
            raise ConfigError("correlation must be in [0, 1) and child_probability in [0, 1]")
        if self.kind != "independent" and self.n_features % self.group_size:
            raise ConfigError(
                f"n_features {self.n_features} is not a multiple of group_size {self.group_size}; choose one that is"
            )
        if self.kind == "hierarchical" and self.group_size < 2:
            raise ConfigError("a hierarchy needs a group_size of at least 2: a parent and its children")
        if float(self.probabilities().max()) > 1:
            raise ConfigError(f"l0={self.l0:g} makes a feature fire more often than always; lower l0 or skew")

    def directions(self) -> Tensor:
        """The truth: unit rows ``[n_features, d_in]``."""
        generator = random_stream(self.seed, "synthetic", "directions")
        return normalize(torch.randn(self.n_features, self.d_in, generator=generator), dim=1)

    def probabilities(self) -> Tensor:
        """How often each feature fires ``[n_features]``, float64."""
        if self.kind != "hierarchical":
            return self._falling(self.n_features, self.l0)
        parents = self._falling(self.n_features // self.group_size, self.l0 / (1 + self.child_probability))
        each_child = parents * self.child_probability / (self.group_size - 1)
        return torch.cat([parents[:, None], each_child[:, None].expand(-1, self.group_size - 1)], dim=1).flatten()

    def latents(self, n_rows: int, seed: int = 0) -> Tensor:
        """Magnitudes ``a [n_rows, n_features]`` of the rows that ``rows`` gives for the same seed."""
        return torch.cat(list(self._chunks(n_rows, seed)))

    def rows(self, n_rows: int, seed: int = 0) -> Tensor:
        """``[n_rows, d_in]`` float32."""
        directions = self.directions()
        return torch.cat([chunk @ directions for chunk in self._chunks(n_rows, seed)])

    def _chunks(self, n_rows: int, seed: int) -> Iterator[Tensor]:
        if n_rows < 1:
            raise ConfigError(f"n_rows must be at least 1, got {n_rows}")
        sizes = [CHUNK] * (n_rows // CHUNK) + ([n_rows % CHUNK] if n_rows % CHUNK else [])
        generator = random_stream(self.seed, "synthetic", "rows", seed)
        return (self._draw(n, generator) for n in sizes)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        shape = (n, self.n_features)
        magnitudes = 0.5 + torch.rand(shape, generator=generator)
        return magnitudes * self._fires(n, generator)

    def _fires(self, n: int, generator: torch.Generator) -> Tensor:
        p = self.probabilities()
        if self.kind == "independent":
            return torch.rand(n, self.n_features, generator=generator) < p
        n_groups = self.n_features // self.group_size
        if self.kind == "correlated":
            shared = torch.randn(n, n_groups, generator=generator).repeat_interleave(self.group_size, dim=1)
            own = torch.randn(n, self.n_features, generator=generator)
            gaussian = math.sqrt(self.correlation) * shared + math.sqrt(1 - self.correlation) * own
            return gaussian > torch.special.ndtri(1 - p)
        if self.kind != "hierarchical":
            assert_never(self.kind)
        fires = torch.zeros(n, n_groups, self.group_size, dtype=torch.bool)
        fires[:, :, 0] = torch.rand(n, n_groups, generator=generator) < p.view(n_groups, self.group_size)[:, 0]
        has_child = fires[:, :, 0] & (torch.rand(n, n_groups, generator=generator) < self.child_probability)
        which = torch.randint(1, self.group_size, (n, n_groups, 1), generator=generator)
        return fires.scatter_(2, which, has_child[:, :, None]).view(n, self.n_features)

    def _falling(self, n: int, total: float) -> Tensor:
        weights = torch.arange(1, n + 1, dtype=torch.float64).pow(-self.skew)
        return weights * (total / weights.sum())
