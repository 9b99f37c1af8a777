"""Linear input scaling, site by site: estimated once, undone exactly.

Shape letters: B rows, d width of a site, D width of all sites side by side, M any other width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from monosema.core.errors import DataError


@dataclass(frozen=True)
class SiteScaling:
    """``u = (x - mean) A`` for one site; ``A = factor · I``, or ``matrix`` where that is given."""

    width: int
    """d."""
    factor: float = 1.0
    """A as a number."""
    mean: Tensor | None = None
    """[d] float64; None for zero."""
    matrix: Tensor | None = None
    """[d, d] float64."""
    inverse: Tensor | None = None
    """[d, d] float64, the inverse of ``matrix``."""

    def apply(self, x: Tensor) -> Tensor:
        """``(x - mean) A`` for ``x [..., d]``."""
        return self.linear(x if self.mean is None else x - self.mean.to(x))

    def undo(self, u: Tensor) -> Tensor:
        """``u A⁻¹ + mean``."""
        raw = self.linear_undo(u)
        return raw if self.mean is None else raw + self.mean.to(u)

    def linear_undo(self, u: Tensor) -> Tensor:
        """``u A⁻¹``, for directions ``[..., d]``."""
        return u / self.factor if self.inverse is None else u @ self.inverse.to(u)

    def linear(self, x: Tensor) -> Tensor:
        """``x A``, for directions ``[..., d]``."""
        return x * self.factor if self.matrix is None else x @ self.matrix.to(x)

    def left(self, W: Tensor) -> Tensor:
        """``A W`` for ``W [d, M]``."""
        return W * self.factor if self.matrix is None else self.matrix.to(W) @ W

    def inverted(self) -> SiteScaling:
        """``x = (u - mean') A⁻¹`` with ``mean' = -mean A``."""
        mean = None if self.mean is None else -self.linear(self.mean)
        return SiteScaling(self.width, 1 / self.factor, mean, self.inverse, self.matrix)


@dataclass(frozen=True)
class Scaling:
    """The scalings of several sites side by side."""

    sites: tuple[SiteScaling, ...]
    """In the order of the columns."""

    @classmethod
    def identity(cls, widths: Sequence[int]) -> Scaling:
        return cls.uniform(1.0, widths)

    @classmethod
    def uniform(cls, factor: float, widths: Sequence[int]) -> Scaling:
        """The same factor at every site."""
        return cls(tuple(SiteScaling(width, factor) for width in widths))

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(site.width for site in self.sites)

    @property
    def is_identity(self) -> bool:
        return self.is_uniform and self.sites[0].factor == 1.0

    @property
    def is_uniform(self) -> bool:
        """Whether it is one factor for everything."""
        plain = all(site.matrix is None and site.mean is None for site in self.sites)
        return plain and len({site.factor for site in self.sites}) == 1

    @property
    def has_mean(self) -> bool:
        return any(site.mean is not None for site in self.sites)

    def equals(self, other: Scaling) -> bool:
        """Whether both map everything alike."""
        if self.is_uniform and other.is_uniform:
            return self.sites[0].factor == other.sites[0].factor
        if self.widths != other.widths:
            return False
        mine, theirs = self.to_state(), other.to_state()
        same = mine[0].keys() == theirs[0].keys() and all(torch.equal(v, theirs[0][k]) for k, v in mine[0].items())
        return same and mine[1] == theirs[1]

    def apply(self, x_BD: Tensor) -> Tensor:
        """Scaled rows, in the dtype of ``x``."""
        if self.is_uniform:
            return x_BD * self.sites[0].factor
        parts = x_BD.split(self.widths, dim=-1)
        return torch.cat([site.apply(part) for site, part in zip(self.sites, parts, strict=True)], dim=-1)

    def undo(self, u_BD: Tensor) -> Tensor:
        """Raw rows."""
        parts = u_BD.split(self.widths, dim=-1)
        return torch.cat([site.undo(part) for site, part in zip(self.sites, parts, strict=True)], dim=-1)

    def left(self, W_DM: Tensor) -> Tensor:
        """``A W`` with A block-diagonal over the sites."""
        if self.is_uniform:
            return W_DM * self.sites[0].factor
        return torch.cat([s.left(part) for s, part in zip(self.sites, W_DM.split(self.widths), strict=True)])

    def right_inverse(self, W_MD: Tensor) -> Tensor:
        """``W A⁻¹``."""
        if self.is_uniform:
            return W_MD / self.sites[0].factor
        parts = W_MD.split(self.widths, dim=-1)
        return torch.cat([s.linear_undo(part) for s, part in zip(self.sites, parts, strict=True)], dim=-1)

    def vector_right_inverse(self, c_D: Tensor) -> Tensor:
        """``c A⁻¹``."""
        return self.right_inverse(c_D.unsqueeze(0)).squeeze(0)

    def mean_vector(self) -> Tensor:
        """``[D]`` float64, zero where nothing is subtracted."""
        zeros = (torch.zeros(site.width, dtype=torch.float64) for site in self.sites)
        return torch.cat([z if s.mean is None else s.mean.cpu() for s, z in zip(self.sites, zeros, strict=True)])

    def without_mean(self) -> Scaling:
        """The linear part ``u = x A``."""
        return Scaling(tuple(replace(site, mean=None) for site in self.sites))

    def inverted(self) -> Scaling:
        return Scaling(tuple(site.inverted() for site in self.sites))

    def to_state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Tensors by name, and plain values by site."""
        tensors = {
            f"{number}.{name}": value
            for number, site in enumerate(self.sites)
            for name, value in (("mean", site.mean), ("matrix", site.matrix), ("inverse", site.inverse))
            if value is not None
        }
        return tensors, [{"width": site.width, "factor": site.factor} for site in self.sites]

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], plain: Sequence[Mapping[str, Any]]) -> Scaling:
        """What ``to_state`` described."""

        def site(number: int, values: Mapping[str, Any]) -> SiteScaling:
            held = (tensors.get(f"{number}.{name}") for name in ("mean", "matrix", "inverse"))
            return SiteScaling(int(values["width"]), float(values["factor"]), *held)

        return cls(tuple(site(number, values) for number, values in enumerate(plain)))


def estimate_scaling(
    kind: Literal["expected_norm", "whitening"],
    rows: Tensor,
    widths: Sequence[int],
    *,
    target: Literal["sqrt_d", "one"] = "sqrt_d",
    epsilon: float = 1e-3,
) -> Scaling:
    """The scaling of each site from rows ``[n, D]``.

    ``expected_norm``: one factor that makes the mean norm √d (or 1). ``whitening``: the mean and
    ``A = E diag(l + ε l̄)^(-1/2) Eᵀ`` from the covariance's eigenvectors E and eigenvalues l with mean l̄: rows of about
    unit covariance, in the site's own basis. Raises ``DataError`` for rows that are all zero, not finite, or too few.
    """
    if rows.ndim != 2 or rows.shape[1] != sum(widths) or len(rows) < 2:
        raise DataError(f"scaling: expected at least two rows [n, {sum(widths)}], got {list(rows.shape)}")
    parts = rows.double().split(list(widths), dim=1)
    if kind == "whitening":
        return Scaling(tuple(_whitening(part, epsilon) for part in parts))
    if kind != "expected_norm":
        assert_never(kind)
    sites = []
    for part in parts:
        norm = float(part.norm(dim=1).mean())
        if not (norm > 0 and math.isfinite(norm)):
            raise DataError(f"the mean norm of the first activations is {norm}; they are all zero or not finite")
        sites.append(SiteScaling(part.shape[1], (math.sqrt(part.shape[1]) if target == "sqrt_d" else 1.0) / norm))
    return Scaling(tuple(sites))


def _whitening(rows: Tensor, epsilon: float) -> SiteScaling:
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    spread = float(covariance.diagonal().mean())
    if not (spread > 0 and math.isfinite(spread)):
        raise DataError(f"the first activations have a variance of {spread}; they are constant or not finite")
    values, vectors = torch.linalg.eigh(covariance)
    deviations = (values.clamp(min=0) + epsilon * spread).sqrt()
    matrix = (vectors / deviations) @ vectors.T
    return SiteScaling(rows.shape[1], 1.0, mean, matrix, (vectors * deviations) @ vectors.T)
