"""A coder on rows of activations: reconstruction and sparsity sums, and the reconstruction itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monosema.coders import Dictionary, Latents
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.metrics import ReconstructionSums, SparsitySums, require_finite

ROWS_PER_STEP = 4096


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


def measure_activations(
    coder: Dictionary,
    activations: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    n_tokens: int | None,
    batch_size: int | None,
) -> RowSums:
    """The sums over given activations: a tensor ``[..., d]`` or an iterable of them.

    ``d`` is ``d_in`` for an SAE; where the coder writes another site than it reads, ``d_in + d_out``: both sites side
    by side, the one read first. At most ``n_tokens`` rows are used. An activation stream is given back in the state
    it came in.
    """
    widths = coder.config.write_widths
    total, left = RowSums.empty(coder, widths), n_tokens
    with unmoved(activations):
        for index, rows in enumerate(row_batches(activations, batch_size or ROWS_PER_STEP)):
            x, target = split_row(coder, rows if left is None else rows[:left], index)
            where = f"{coder.hook_name or 'activations'}, batch {index}"
            total = total + measure_rows(coder, x, target, widths, where).sums
            if left is not None:
                left -= len(x)
                if left <= 0:
                    break
    return total


def require_enough(n_tokens: int) -> None:
    """Raise ``DataError`` unless at least two rows were measured: one has no variance."""
    if n_tokens < 2:
        raise DataError(
            f"evaluation needs at least 2 tokens that are not special, got {n_tokens}; give more text or activations"
        )


def require_finite_weights(coder: Dictionary) -> None:
    """Raise ``DataError`` for a parameter that is not finite; a latent with a NaN encoder just never fires."""
    for name, parameter in coder.named_parameters():
        require_finite(f"the coder's {name}", parameter.detach())


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


@contextlib.contextmanager
def unmoved(source: Any) -> Iterator[None]:
    """Reading a stream that has a state moves it on; put it back, so that training sees what it would have seen."""
    if not (hasattr(source, "state_dict") and hasattr(source, "load_state_dict")):
        yield
        return
    state = source.state_dict()
    try:
        yield
    finally:
        source.load_state_dict(state)


def row_batches(activations: Tensor | np.ndarray | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Rows ``[at most batch_size, d]``; of a loader's tuples the first entry. Mapped files are read in parts."""
    if isinstance(activations, str):
        raise ConfigError("activations must be a tensor, an array or an iterable of those, got a string")
    for each in [activations] if isinstance(activations, Tensor | np.ndarray) else activations:
        rows = each[0] if isinstance(each, tuple | list) else each
        if rows.ndim < 2:
            raise ShapeError(
                f"activations must be a tensor [..., d] or an iterable of such tensors, got one of {list(rows.shape)}"
            )
        rows = rows.reshape(-1, rows.shape[-1])
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def split_row(coder: Dictionary, rows: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """What is read and what is to be reconstructed, from rows ``[n, d]``."""
    width, both = rows.shape[1], coder.d_in + coder.d_out
    if width == coder.d_in and coder.hook_name == coder.hook_name_out and coder.d_in == coder.d_out:
        return rows, rows
    if width == both and (coder.hook_name != coder.hook_name_out or not coder.hook_name):
        return rows[:, : coder.d_in], rows[:, coder.d_in :]
    if coder.hook_name == coder.hook_name_out and coder.d_in == coder.d_out:
        expected = f"[rows, {coder.d_in}] (d_in)"
    else:
        expected = f"[rows, {both}] (d_in + d_out: what is read and what is written, side by side)"
    raise ShapeError(
        f"the coder (hook {coder.hook_name or 'not recorded'!r}) needs activations {expected}, got [rows, {width}] "
        f"in batch {index}"
    )
