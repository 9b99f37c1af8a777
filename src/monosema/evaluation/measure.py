"""A coder on rows of activations: reconstruction and sparsity sums, and the reconstruction itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monosema.coders import Dictionary, Latents
from monosema.core.errors import ConfigError, DataError
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


def measure_rows(coder: Dictionary, x: Tensor, target: Tensor, widths: Sequence[int], where: str) -> MeasuredRows:
    """Reconstruct ``target [n, d_out]`` from ``x [n, d_in]`` as the coder does it, and sum.

    Rows are cast to the coder's dtype and device. ``widths`` are those of the sites that lie side by side in
    ``target``; ``where`` names site and batch in errors: ``DataError`` where an activation or a reconstruction is not
    finite.
    """
    require_finite(f"activations read at {where}", x)
    if target is not x:
        require_finite(f"activations at the site written, for {where}", target)
    x = x.to(device=coder.device, dtype=coder.dtype)
    latents = coder.encode_sparse(x)
    x_hat = coder.decode(latents, x)
    require_finite(f"the coder's reconstruction for {where}", x_hat)
    target = target.to(coder.device)
    columns = zip(target.split(list(widths), 1), x_hat.split(list(widths), 1), strict=True) if len(widths) > 1 else ()
    sites = tuple(ReconstructionSums.of(own, own_hat) for own, own_hat in columns)
    return MeasuredRows(x_hat, latents, RowSums(ReconstructionSums.of(target, x_hat), SparsitySums.of(latents), sites))


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
