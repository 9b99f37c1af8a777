"""Which sites a crosscoder's latents belong to: by decoder norms, and by what the activations themselves say.

Shape letters: F latents, S sites written, d width of a site, D widths of all sites side by side, P pairs of sites,
E active entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from monosema.core.errors import ConfigError, ShapeError
from monosema.core.words import counted
from monosema.metrics.checks import require_finite, wide
from monosema.metrics.sparsity import SparseRows

SHARED, BETWEEN, NOWHERE = -1, -2, -3
"""Classes of latents that are no site's own: on all sites alike, between the thresholds, with a zero decoder."""


def decoder_shares(W_dec_FD: Tensor, widths: Sequence[int], units: Sequence[float] | None = None) -> Tensor:
    """Each site's share of a latent's decoder norms, ``‖d^m_j‖ / Σ_s ‖d^s_j‖``: ``[F, S]`` float64 in [0, 1].

    Of two sites A and B, ``‖d^A_j‖ / (‖d^A_j‖ + ‖d^B_j‖)`` and one less that. ``units`` divide a site's norms (one by
    default), for sites whose activations differ in size. A row that is all zero has no shares: NaN. Lindsey et al.
    2024 (sparse crosscoders, "model diffing").
    """
    parts = _parts(W_dec_FD, widths, units)
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts], dim=1)
    return norms / norms.sum(1, keepdim=True)


def site_cosines(W_dec_FD: Tensor, widths: Sequence[int]) -> Tensor:
    """Cosine of a latent's decoder rows at each pair of sites: ``[F, P]`` float64, pairs (0, 1), (0, 2), …, (1, 2), ….

    In [-1, 1]; 0 where a row is zero. Raises ``ShapeError`` where the sites have different widths.
    """
    parts = _parts(W_dec_FD, widths, None)
    _require_one_width(widths)
    return torch.stack([cosine_similarity(a, b, dim=1) for a, b in itertools.combinations(parts, 2)], dim=1)


def site_classes(shares_FS: Tensor, *, exclusive: float = 0.9, shared: float = 0.3) -> Tensor:
    """To which site each latent belongs by its decoder norms: ``[F]`` int64.

    m where the share of site m exceeds ``exclusive``; ``SHARED`` where every share is at least ``shared · 2 / S``
    (for two sites, between 0.3 and 0.7); ``BETWEEN`` where neither; ``NOWHERE`` for a zero decoder. Raises
    ``ConfigError`` for thresholds that overlap.
    """
    n_sites = shares_FS.shape[1]
    if not (0.5 <= exclusive < 1 and 0 < shared <= 0.5 and 1 - exclusive <= 2 * shared * (1 - 1 / n_sites) + 1e-9):
        raise ConfigError(
            "thresholds of decoder shares need 0.5 <= exclusive < 1, 0 < shared <= 0.5 and "
            f"1 - exclusive <= 2 shared (1 - 1/S), got exclusive={exclusive}, shared={shared} of "
            f"{counted(n_sites, 'site')}"
        )
    largest, site = shares_FS.max(dim=1)
    classes = torch.full_like(site, BETWEEN)
    classes[(shares_FS >= shared * 2 / n_sites).all(1)] = SHARED
    own = largest > exclusive
    classes[own] = site[own]
    classes[shares_FS.isnan().any(1)] = NOWHERE
    return classes


@dataclass(frozen=True)
class LatentScalingSums:
    """Sums over tokens from which latent scaling follows; those of two sets of tokens add to those of both."""

    squared: Tensor
    """``[F]`` float64 on the CPU: ``Σ_t f_j(t)²``."""
    error: Tensor
    """``[F, S]``: ``Σ_t f_j(t) ⟨ε^m(t), d_j⟩``, with the error ``ε^m = x^m - x̂^m``."""
    reconstruction: Tensor
    """``[F, S]``: ``Σ_t f_j(t) ⟨x̂^m(t), d_j⟩``."""

    @classmethod
    def empty(cls, d_sae: int, n_sites: int) -> LatentScalingSums:
        """The sums of no tokens."""
        products = torch.zeros(d_sae, n_sites, dtype=torch.float64)
        return cls(torch.zeros(d_sae, dtype=torch.float64), products, products)

    @classmethod
    def of(cls, latents: SparseRows, error_ES: Tensor, reconstruction_ES: Tensor) -> LatentScalingSums:
        """The sums of ``latents``, given for each entry e (token t, latent j) ``⟨ε^m(t), d_j⟩``, ``⟨x̂^m(t), d_j⟩``.

        Raises ``DataError`` where a product is not finite.
        """
        values, indices = wide(latents.values.detach()), latents.indices.to(torch.int64)
        for name, products in (("products with the error", error_ES), ("with the reconstruction", reconstruction_ES)):
            require_finite(name, products)

        def per_latent(entries: Tensor) -> Tensor:
            total = entries.new_zeros((latents.d_sae, *entries.shape[1:]))
            return total.index_add_(0, indices.to(entries.device), entries).cpu()

        weights = values.unsqueeze(1)
        return cls(
            squared=per_latent(values.square()),
            error=per_latent(weights * wide(error_ES)),
            reconstruction=per_latent(weights * wide(reconstruction_ES)),
        )

    def __add__(self, other: LatentScalingSums) -> LatentScalingSums:
        return LatentScalingSums(
            self.squared + other.squared, self.error + other.error, self.reconstruction + other.reconstruction
        )

    def scaling(self, W_dec_FD: Tensor, widths: Sequence[int], directions_Fd: Tensor) -> LatentScaling:
        """See :class:`LatentScaling`; decoder and directions in the units in which the products were taken."""
        directions = wide(directions_Fd.detach()).cpu()
        own = torch.stack([(part.cpu() * directions).sum(1) for part in _parts(W_dec_FD, widths, None)], dim=1)
        norm_F1 = directions.square().sum(1, keepdim=True)
        scale_F1 = self.squared.unsqueeze(1) * norm_F1
        defined = scale_F1 > 0
        return LatentScaling(
            error=torch.where(defined, self.error / scale_F1 + own / norm_F1, torch.nan),
            reconstruction=torch.where(defined, self.reconstruction / scale_F1, torch.nan),
        )


@dataclass(frozen=True)
class LatentScaling:
    """How much of a latent is in each site: ``β^m_j = argmin_β Σ_t ‖β f_j(t) d_j - y^m_j(t)‖²``.

    In closed form ``Σ_t f_j ⟨y^m_j, d_j⟩ / (‖f_j‖² ‖d_j‖²)``, with one direction d_j for all sites: a decoder row of
    the latent. Minder et al. 2025 (arXiv 2504.02922) take it for two targets, the latent's own
    contribution ``f_j d^m_j`` being part of both. NaN where a latent never fires or its direction is zero.
    """

    error: Tensor
    """``β^{m,ε}_j [F, S]``: y is the error with the latent's own contribution added back, ``ε^m + f_j d^m_j``. Large at
    a site where the decoder is small: complete shrinkage, the site has the latent and its decoder does not."""
    reconstruction: Tensor
    """``β^{m,r}_j [F, S]``: y is the reconstruction x̂^m. Large where the decoder is small: latent decoupling, other
    latents write there what this one stands for."""

    def nu_error(self, reference_F: Tensor) -> Tensor:
        """``ν^ε_j = β^{m,ε}_j / β^{r,ε}_j`` with the latent's reference site r: ``[F, S]``, one at r.

        NaN where β at the reference is not positive: the latent then explains nothing even there.
        """
        return _over_reference(self.error, reference_F)

    def nu_reconstruction(self, reference_F: Tensor) -> Tensor:
        """``ν^r_j = β^{m,r}_j / β^{r,r}_j``, likewise."""
        return _over_reference(self.reconstruction, reference_F)


def _over_reference(beta_FS: Tensor, reference_F: Tensor) -> Tensor:
    base = beta_FS.gather(1, reference_F.unsqueeze(1))
    return torch.where(base > 0, beta_FS / base, torch.nan)


def _parts(W_dec_FD: Tensor, widths: Sequence[int], units: Sequence[float] | None) -> list[Tensor]:
    """The decoder's slices ``[F, width]`` in float64, divided by their sites' units."""
    if W_dec_FD.dim() != 2 or W_dec_FD.shape[1] != sum(widths) or len(widths) < 2:
        raise ShapeError(
            f"expected a decoder [F, D] over at least two sites whose widths add up to D, got {list(W_dec_FD.shape)} "
            f"and widths {list(widths)}"
        )
    require_finite("W_dec", W_dec_FD)
    parts = wide(W_dec_FD.detach()).split(list(widths), dim=1)
    return list(parts) if units is None else [part / unit for part, unit in zip(parts, units, strict=True)]


def _require_one_width(widths: Sequence[int]) -> None:
    if len(set(widths)) > 1:
        raise ShapeError(f"directions can be compared between sites of one width only, got widths {list(widths)}")
