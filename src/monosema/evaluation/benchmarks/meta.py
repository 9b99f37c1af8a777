"""Meta-SAE structure: how much of a dictionary's decoder directions a small dictionary of them explains.

Shape letters: F latents of the dictionary, D width of its site, N rows of its decoder that are not zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosema.coders import Dictionary, Latents
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.core.words import counted
from monosema.evaluation.activations import ROWS_PER_STEP
from monosema.evaluation.benchmarks.config import MetaConfig
from monosema.evaluation.benchmarks.intervals import Interval, resampled_means
from monosema.evaluation.benchmarks.report import BenchmarkReport, Table
from monosema.evaluation.measure import evaluation_mode
from monosema.kernels.latents import stack_tokens
from monosema.metrics import require_finite


@dataclass(frozen=True, kw_only=True)
class MetaDictionary:
    """One meta-dictionary; the unit decoder rows it reads are those it was trained on."""

    seed: int
    """Of its training."""
    fve: Interval
    """Fraction of the rows' variance that it explains; over resamples of the rows."""
    l0: float
    """Mean number of meta-latents of a row."""
    dead_fraction: float
    """Fraction of meta-latents that no row uses."""
    n_meta_latents: int
    """Meta-latents."""
    latents: Latents | None = field(default=None, repr=False, compare=False)
    """[N] meta-latents of each row."""
    errors: Tensor | None = field(default=None, repr=False, compare=False)
    """[N] float64: ``‖row - reconstruction‖²`` of each unit row."""


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """One latent's decoder direction as a sum of meta-latents."""

    latent: int
    """The latent."""
    meta_latents: tuple[int, ...]
    """Its meta-latents, largest value first."""
    values: tuple[float, ...]
    """Their values."""
    error: float
    """``‖row - reconstruction‖²`` of its unit decoder row."""


@dataclass(frozen=True, kw_only=True)
class MetaReport(BenchmarkReport):
    """Shared structure of a dictionary's decoder directions; ``measure_meta`` defines the score."""

    benchmark = "meta"

    fve: float
    """Mean over the meta-dictionaries: 0 is no shared structure."""
    fve_std: float
    """Sample standard deviation over them; NaN for one."""
    dictionaries: tuple[MetaDictionary, ...]
    """The meta-dictionaries, one for each seed."""
    n_zero: int
    """Latents without a decoder direction, left out."""
    config: MetaConfig | None = None
    """How the meta-dictionaries were trained; None where they were given."""
    kept: Tensor | None = field(default=None, repr=False, compare=False)
    """[N] int64: the latent of each row."""

    def decomposition(self, latent: int, which: int = 0) -> Decomposition:
        """``latent`` as a sum of meta-latents of the dictionary ``which``.

        Raises ``ConfigError`` for a latent or a dictionary that does not exist, or a latent without a direction.
        """
        if self.kept is None:
            raise ConfigError("the report was read from a file without what is measured for each latent; measure again")
        row = (self.kept == latent).nonzero()
        if not 0 <= which < len(self.dictionaries) or not len(row):
            raise ConfigError(
                f"there is no decomposition of latent {latent} by meta-dictionary {which}: "
                f"{counted(self.d_sae, 'latent')} "
                f"({self.n_zero} without a direction), {len(self.dictionaries)} meta-dictionaries"
            )
        meta, place = self.dictionaries[which], int(row[0])
        assert meta.latents is not None
        assert meta.errors is not None
        own = slice(int(meta.latents.crow[place]), int(meta.latents.crow[place + 1]))
        values, indices = meta.latents.values[own].double(), meta.latents.indices[own]
        order = [at for at in values.argsort(descending=True, stable=True).tolist() if float(values[at]) != 0]
        return Decomposition(
            latent=latent,
            meta_latents=tuple(int(indices[at]) for at in order),
            values=tuple(float(values[at]) for at in order),
            error=float(meta.errors[place]),
        )

    def _title(self) -> str:
        return (
            f"meta-dictionaries of {counted(self.d_sae, 'decoder direction')} at "
            f"{self.hook_name or 'a site not recorded'}: "
            f"fve {self.fve:.4f}, standard deviation {self.fve_std:.4f}"
        )

    def _tables(self) -> list[Table]:
        rows = [
            (str(each.seed), each.fve, each.l0, each.dead_fraction, each.n_meta_latents) for each in self.dictionaries
        ]
        return [Table(("seed", "fve", "l0", "dead_fraction", "meta-latents"), rows)]


def decoder_directions(coder: Dictionary) -> tuple[Tensor, Tensor]:
    """Unit decoder rows ``[N, d_out]`` that are not zero, and the latent of each ``[N]``.

    Raises ``ConfigError`` for a stack of coders, and ``DataError`` where rows are not finite or fewer than two remain.
    """
    if coder.is_layered:
        raise ConfigError("decoder structure is that of one group of latents; take one layer's coder of the stack")
    W_dec = coder.decoder_rows(range(coder.d_sae)).detach()
    require_finite("W_dec", W_dec)
    kept = (W_dec.norm(dim=1) > 0).nonzero().squeeze(1)
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} of {counted(coder.d_sae, 'decoder row')} are not zero; a dictionary of them needs two"
        )
    return normalize(W_dec[kept], dim=1), kept.cpu()


def measure_meta(coder: Dictionary, metas: Mapping[int, Dictionary]) -> MetaReport:
    """What small dictionaries of ``coder``'s decoder directions explain of them (Bussmann et al. 2024, "meta-SAEs").

    The rows are ``W_dec[i] / ‖W_dec[i]‖``. A meta-dictionary writes each as a sum of a few of its meta-latents; its
    ``fve = 1 - Σ ‖row - reconstruction‖² / Σ ‖row - mean row‖²`` in (-inf, 1] says how far latents are made of shared
    parts: low where each is a direction of its own, high where latents are compositions (or copies) of others.
    ``monosema.runs.decoder_structure`` trains them as SAEBench (2503.09532) does.

    Known caveats: fve rises with the number of meta-latents and with k, and with many latents in few dimensions, so
    compare dictionaries of one width and site only; it is measured on the rows trained on, as there are no others; dead
    latents still have a direction and count. Intervals resample rows with the meta-dictionary and the mean row as they
    are; the spread over seeds is that of training.

    Args:
        coder: the dictionary whose decoder is looked at.
        metas: meta-dictionaries, SAEs of width ``coder.d_out``, by the seed of their training, and of resamples.

    Raises ``ConfigError``, ``ShapeError`` and ``DataError`` for a stack, a meta-dictionary of another width or none at
    all, and weights that are not finite.
    """
    rows, kept = decoder_directions(coder)
    if not metas:
        raise ConfigError("there is no meta-dictionary to measure; give at least one")
    measured = []
    for number, meta in metas.items():
        if meta.d_in != rows.shape[1] or meta.d_out != rows.shape[1]:
            raise ShapeError(
                f"a meta-dictionary must read and write decoder rows of width {rows.shape[1]}, got one of {meta.d_in} "
                f"and {meta.d_out}"
            )
        measured.append(_measure(rows.to(meta.device, meta.dtype), meta, number))
    scores = [each.fve.value for each in measured]
    n_zero = coder.d_sae - len(kept)
    return MetaReport(
        fve=statistics.fmean(scores),
        fve_std=statistics.stdev(scores) if len(scores) > 1 else math.nan,
        dictionaries=tuple(measured),
        n_zero=n_zero,
        d_sae=coder.d_sae,
        hook_name=coder.hook_name_out or "",
        kept=kept,
        notes=(f"{counted(n_zero, 'latent')} without a direction are left out",) if n_zero else (),
    )


def _measure(rows: Tensor, meta: Dictionary, number: int) -> MetaDictionary:
    with evaluation_mode(meta):
        latents = stack_tokens([meta.encode_sparse(part) for part in rows.split(ROWS_PER_STEP)])
        x_hat = meta.decode(latents, rows)
    require_finite(f"the reconstruction by meta-dictionary {number}", x_hat)
    wide = rows.double()
    errors = (wide - x_hat.double()).square().sum(1).cpu()
    spread = (wide - wide.mean(0)).square().sum(1).cpu()
    means = resampled_means(torch.stack([errors, spread], dim=1), number, "meta")
    fired = latents.firings()
    return MetaDictionary(
        seed=number,
        fve=Interval.of(1 - means[:, 0] / means[:, 1], len(rows)),
        l0=float((latents.values != 0).sum()) / len(rows),
        dead_fraction=float((fired == 0).double().mean()),
        n_meta_latents=meta.d_sae,
        latents=latents,
        errors=errors,
    )
