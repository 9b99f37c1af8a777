"""A coder on rows of activations: reconstruction and sparsity sums, and the reconstruction itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from monosema.coders import Dictionary, Latents
from monosema.core.errors import ConfigError, DataError
from monosema.data.outliers import NormRule
from monosema.data.recorded_outliers import joined
from monosema.metrics import ReconstructionSums, SparsitySums, require_finite


@dataclass(frozen=True)
class RowSums:
    """What is summed over rows; two add to the sums of both."""

    reconstruction: ReconstructionSums
    """Of the site written and its reconstruction."""
    sparsity: SparsitySums
    """Of the latents."""
    sites: tuple[ReconstructionSums, ...] = ()
    """Of each site written by itself, where there are several."""

    @classmethod
    def empty(cls, coder: Dictionary, widths: Sequence[int]) -> RowSums:
        """The sums of no rows; ``widths`` are those of the sites written."""
        sites = tuple(map(ReconstructionSums.empty, widths)) if len(widths) > 1 else ()
        return cls(ReconstructionSums.empty(coder.d_out), SparsitySums.empty(coder.d_sae), sites)

    def __add__(self, other: RowSums) -> RowSums:
        sites = tuple(mine + theirs for mine, theirs in zip(self.sites, other.sites, strict=True))
        return RowSums(self.reconstruction + other.reconstruction, self.sparsity + other.sparsity, sites)


@dataclass(frozen=True)
class MeasuredRows:
    """One batch of rows through the coder."""

    x_hat: Tensor
    """``[n, d_out]`` in the coder's dtype, on its device."""
    latents: Latents
    """What it was decoded from."""
    sums: RowSums
    """The sums of these rows."""
    target: Tensor
    """``[n, d_out]``: what ``x_hat`` reconstructs."""
    outlier: Tensor | None = None
    """``[m]`` bool on the CPU: of the rows given, those left out of all above; None where the m rows are the n."""
    outliers: ReconstructionSums | None = None
    """The sums of those left out."""
    in_place: Tensor | None = None
    """``[m, d_out]``: ``x_hat``, and the target itself at the rows left out; None where there are none."""

    @property
    def spliced(self) -> Tensor:
        """``[m, d_out]``: what takes the place of all rows in a spliced run."""
        return self.x_hat if self.in_place is None else self.in_place

    def kept(self, values: Tensor) -> Tensor:
        """Of ``values [m, ...]`` those of the rows that were not left out."""
        return values if self.outlier is None else values[~self.outlier.to(values.device)]


def measure_rows(
    coder: Dictionary,
    x: Tensor,
    target: Tensor,
    widths: Sequence[int],
    where: str,
    rule: NormRule | None = None,
) -> MeasuredRows:
    """Reconstruct ``target [n, d_out]`` from ``x [n, d_in]`` as the coder does it, and sum.

    Rows are cast to the coder's dtype and device. ``widths`` are those of the sites that lie side by side in
    ``target``; ``where`` names site and batch in errors: ``DataError`` where an activation or a reconstruction is not
    finite. Rows that are outliers by ``rule`` are left out and summed apart.
    """
    require_finite(f"activations read at {where}", x)
    if target is not x:
        require_finite(f"activations at the site written, for {where}", target)
    outlier = None if rule is None else rule.outliers(joined(x, target))
    if outlier is not None and bool(outlier.any()):
        return _measured_apart(coder, x, target, widths, where, outlier)
    x = x.to(device=coder.device, dtype=coder.dtype)
    latents = coder.encode_sparse(x)
    x_hat = coder.decode(latents, x)
    require_finite(f"the coder's reconstruction for {where}", x_hat)
    target = target.to(coder.device)
    columns = zip(target.split(list(widths), 1), x_hat.split(list(widths), 1), strict=True) if len(widths) > 1 else ()
    sites = tuple(ReconstructionSums.of(own, own_hat) for own, own_hat in columns)
    sums = RowSums(ReconstructionSums.of(target, x_hat), SparsitySums.of(latents), sites)
    return MeasuredRows(x_hat, latents, sums, target)


def _measured_apart(
    coder: Dictionary, x: Tensor, target: Tensor, widths: Sequence[int], where: str, outlier: Tensor
) -> MeasuredRows:
    """``measure_rows`` of the rows that are no ``outlier [m]``, and the sums of the others."""
    x_own, x_other = x[~outlier.to(x.device)], x[outlier.to(x.device)]
    own, other = x_own, x_other
    if target is not x:
        own, other = target[~outlier.to(target.device)], target[outlier.to(target.device)]
    measured = measure_rows(coder, x_own, own, widths, where)
    row = x_other.to(device=coder.device, dtype=coder.dtype)
    x_hat = coder.decode(coder.encode_sparse(row), row)
    in_place = target.to(device=coder.device, dtype=torch.promote_types(target.dtype, measured.x_hat.dtype)).clone()
    in_place[~outlier.to(coder.device)] = measured.x_hat.to(in_place.dtype)
    outliers = _sums_of_outliers(other.to(coder.device), x_hat)
    return replace(measured, outlier=outlier, outliers=outliers, in_place=in_place)


def _sums_of_outliers(target: Tensor, x_hat: Tensor) -> ReconstructionSums:
    """Those of rows so large that their reconstruction may overflow: it is then NaN, and so is what is summed up."""
    finite = torch.isfinite(x_hat)
    sums = ReconstructionSums.of(target, torch.where(finite, x_hat, 0.0))
    lost = torch.where(finite.all(0).cpu(), 0.0, math.nan)
    return replace(sums, squared_error=sums.squared_error + lost)


def check_counts(**counts: int | None) -> None:
    """Raise ``ConfigError`` for a count below one, before any work is done."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, or None, got {value}")


def require_finite_weights(coder: Dictionary) -> None:
    """Raise ``DataError`` for a parameter or buffer that is not finite.

    Nothing else would show it: a latent with a NaN encoder just never fires, and a NaN threshold is none.
    """
    for name, value in (*coder.named_parameters(), *coder.named_buffers()):
        require_finite(f"the coder's {name}", value.detach())


def require_enough(n_tokens: int) -> None:
    """Raise ``DataError`` unless at least two rows were measured: one has no variance."""
    if n_tokens < 2:
        raise DataError(
            f"evaluation needs at least 2 tokens that are not special, got {n_tokens}; give more text or activations"
        )


@contextlib.contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Every submodule out of training mode and gradients off; each flag as it was afterwards."""
    flags = [(each, each.training) for module in modules for each in module.modules()]
    try:
        for each, _ in flags:
            each.training = False
        with torch.no_grad():
            yield
    finally:
        for each, training in flags:
            each.training = training
