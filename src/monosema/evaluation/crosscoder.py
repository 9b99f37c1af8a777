"""``evaluate_crosscoder``: which of a crosscoder's latents belong to one site alone, by its weights and on text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from monosema.coders import Dictionary
from monosema.core.devices import say_if_threads_spin
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.core.peers import explains_options
from monosema.core.progress import Progress
from monosema.data import Tokens, TokenSplit
from monosema.data.dictionary_sites import Models, by_name, sites_of
from monosema.data.outliers import NormRule
from monosema.data.recorded_outliers import OutlierMultiple, first_rows, joined, rule_for
from monosema.data.trained_on import model_notes
from monosema.evaluation.activations import ROWS_PER_STEP, row_batches, split_row, unmoved
from monosema.evaluation.contexts import evaluation_contexts, overlap_with_training
from monosema.evaluation.crosscoder_report import CrosscoderReport, CrosscoderThresholds, LatentSites, crosscoder_report
from monosema.evaluation.measure import (
    RowSums,
    check_counts,
    evaluation_mode,
    measure_rows,
    require_enough,
    require_finite_weights,
)
from monosema.evaluation.runs import Subject, batches, capture_places, fitting_batch_size
from monosema.kernels import Latents, sampled_products
from monosema.metrics import LatentScalingSums, decoder_shares, require_finite, site_classes, site_cosines
from monosema.metrics.checks import wide

SiteUnits = Literal["raw", "mean_norm"]


@dataclass(frozen=True)
class _Batch:
    x: Tensor
    """``[n, d_in]``: what the coder reads."""
    target: Tensor
    """``[n, d_out]``: the sites it writes, side by side."""
    where: str
    """Site and batch, for errors."""


@dataclass(frozen=True)
class _Source:
    batches: Callable[[Progress], Iterator[_Batch]]
    """A pass over all of them."""
    n_positions: int
    """Positions in a pass; 0 for rows, which are not counted beforehand."""
    provenance: dict[str, Any]
    """Fields of the report that say what was measured."""
    modules: tuple[nn.Module, ...] = ()
    """The models run."""


@dataclass(frozen=True)
class _Sums:
    """What is summed over batches."""

    rows: RowSums
    scaling: LatentScalingSums
    norms: Tensor
    """``[S]`` float64: ``Σ_t ‖x^m(t)‖``."""

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.rows + other.rows, self.scaling + other.scaling, self.norms + other.norms)


@explains_options
def evaluate_crosscoder(
    coder: Dictionary,
    model: Models | None = None,
    tokens: Tokens | TokenSplit | Tensor | None = None,
    *,
    activations: Tensor | np.ndarray | Iterable[Tensor | np.ndarray] | None = None,
    n_tokens: int | None = 200_000,
    batch_size: int | None = None,
    reference: str | int | None = None,
    site_units: SiteUnits | Sequence[float] = "raw",
    thresholds: CrosscoderThresholds | None = None,
    outlier_norm_multiple: OutlierMultiple = "recorded",
    progress: bool = True,
) -> CrosscoderReport:
    """Whose each latent is: shares and cosines of its decoder rows, and latent scaling on activations.

    A decoder that is small at a site may mean that the site (or the model it is in) has no such feature, or that the
    sparsity loss removed it (complete shrinkage), or that other latents write it there (latent decoupling). Latent
    scaling tells them apart: ``β^m_j = Σ_t f_j ⟨y^m_j, d_j⟩ / (‖f_j‖² ‖d_j‖²)``, with d_j the decoder row at the
    latent's reference site r and y the error with the latent's own part added back, or the reconstruction;
    ``ν = β^m / β^r``. Small ν^ε and ν^r at every other site confirm a latent that its norms call exclusive. Minder et
    al. 2025 (arXiv 2504.02922); formulas in ``metrics/crosscoders.py``.

    Everything is summed in float64 in one pass, for all latents at once, over the entries that are active.

    Args:
        coder: a crosscoder, ``ms.load``'ed or just trained.
        model: the language model it reads; several by name, for sites such as ``base:blocks.2.hook_resid_post``.
        tokens: a ``Tokens`` (its held-out split is used), one split, or token ids ``[n, T]``.
        activations: instead of model and tokens, rows ``[..., d_in]`` or an iterable of them (a stream, stored rows).
        n_tokens: tokens used at most; None for all.
        batch_size: contexts in a forward pass (rows in a step for ``activations``).
        reference: the site whose decoder row is d_j, by name or number, for all latents; by default of each latent the
            site where its decoder's share is largest.
        site_units: what a site's activations and decoder rows are divided by: nothing, their mean norm (found in a
            pass of its own), or a number for each. Sites of different size (layers of one model) need it.
        thresholds: where shares and ν are cut into classes.
        outlier_norm_multiple: rows with norms of more than so many times the median are left out, as in ``evaluate``.
        progress: show a bar on a terminal, a logged line elsewhere (not for ``activations``).

    Raises:
        ConfigError: not a crosscoder, an unknown reference, units or thresholds that make no sense, or neither or both
            of (model, tokens) and activations.
        UnknownNameError: the model has no such site.
        ShapeError: a width is not the site's, or the sites have several widths.
        DataError: an activation or reconstruction is not finite, or there are too few tokens.
    """
    check_counts(n_tokens=n_tokens, batch_size=batch_size)
    require_finite_weights(coder)
    say_if_threads_spin(coder.device)
    cuts = thresholds if thresholds is not None else CrosscoderThresholds()
    names = _require_crosscoder(coder)
    chosen_reference = _site_number(reference, names)
    if activations is not None and model is None and tokens is None:
        source = _on_rows(coder, activations, n_tokens, batch_size, twice=site_units == "mean_norm")
    elif activations is None and model is not None and tokens is not None:
        source = _on_text(coder, model, tokens, n_tokens, batch_size)
    else:
        raise ConfigError("give either model and tokens, or activations=...")
    ordinary = _OrdinaryRows(coder, source, rule_for(coder, outlier_norm_multiple))
    passes = 2 if site_units == "mean_norm" else 1
    with (
        Progress("crosscoder", passes * source.n_positions, enabled=progress and source.n_positions > 0) as bar,
        evaluation_mode(coder, *source.modules),
    ):
        units = _units(coder, ordinary.batches(bar), site_units)
        shares = decoder_shares(_decoder(coder), coder.write_widths, units)
        largest = shares.nan_to_num(nan=0.0).argmax(dim=1)
        reference_F = largest if chosen_reference is None else torch.full_like(largest, chosen_reference)
        sums, directions = _measure(coder, ordinary.batches(bar), units, reference_F)
    require_enough(sums.rows.sparsity.n_tokens)
    provenance = {**source.provenance, "n_outlier_rows": ordinary.n_left_out}
    return _report(coder, names, sums, directions, shares, reference_F, units, cuts, provenance)


class _OrdinaryRows:
    """A source without the rows that ``rule`` leaves out; ``n_left_out`` counts those of the newest pass."""

    def __init__(self, coder: Dictionary, source: _Source, rule: NormRule | None):
        self._coder, self._source, self._rule = coder, source, rule
        self.n_left_out: int | None = None

    def batches(self, bar: Progress) -> Iterator[_Batch]:
        """A pass over all of them."""
        batches = self._source.batches(bar)
        if self._rule is None:
            yield from batches
            return
        if self._rule.medians is None:
            first, batches = first_rows(batches, lambda batch: joined(batch.x, batch.target))
            if first is None:
                return
            widths = self._coder.read_widths
            if first.shape[1] != self._coder.d_in:
                widths += self._coder.write_widths
            self._rule = self._rule.estimated([("", width) for width in widths], [first])
        self.n_left_out = 0
        for batch in batches:
            require_finite(f"activations read at {batch.where}", batch.x)
            outlier = self._rule.outliers(joined(batch.x, batch.target))
            if bool(outlier.any()):
                self.n_left_out += int(outlier.sum())
                x, target = (each[~outlier.to(each.device)] for each in (batch.x, batch.target))
                batch = replace(batch, x=x, target=x if batch.target is batch.x else target)
            yield batch


def _on_text(
    coder: Dictionary,
    model: Models,
    tokens: Tokens | TokenSplit | Tensor,
    n_tokens: int | None,
    batch_size: int | None,
) -> _Source:
    models = by_name(model)
    chosen = evaluation_contexts(tokens, list(models.values()), n_tokens, 0)
    subject = Subject(coder, sites_of(coder, models, to_be_written=False))
    size = batch_size or fitting_batch_size(models, chosen.split.context_size)

    def pass_over(bar: Progress) -> Iterator[_Batch]:
        for index, part in enumerate(batches(chosen, size)):
            values = capture_places(models, subject.places, chosen.contexts[part], chosen.documents_of(part))
            counted = ~chosen.special[part]
            yield _Batch(*subject.rows(values, counted), f"{coder.hook_name!r}, batch {index}")
            bar.advance(counted.numel())

    provenance = {
        "model_name": ", ".join(f"{key}: {each.name}" if key else each.name for key, each in models.items()),
        "split": chosen.split.name,
        "tokens_fingerprint": chosen.split.fingerprint,
        "overlap": overlap_with_training(coder, tokens, chosen.split),
        "n_special_positions": int(chosen.special.sum()),
        "notes": tuple(model_notes(coder, model)),
    }
    return _Source(pass_over, chosen.contexts.numel(), provenance, tuple(each.hf for each in models.values()))


def _on_rows(
    coder: Dictionary, activations: Any, n_tokens: int | None, batch_size: int | None, *, twice: bool
) -> _Source:
    if twice and not hasattr(activations, "state_dict") and iter(activations) is activations:
        raise ConfigError("site_units='mean_norm' reads the activations twice; give a tensor or a list, no iterator")

    def pass_over(bar: Progress) -> Iterator[_Batch]:
        left = n_tokens
        with unmoved(activations):
            for index, rows in enumerate(row_batches(activations, batch_size or ROWS_PER_STEP)):
                x, target = split_row(coder, rows if left is None else rows[:left], index)
                yield _Batch(x, target, f"{coder.hook_name or 'activations'}, batch {index}")
                left = None if left is None else left - len(x)
                if left is not None and left <= 0:
                    return

    return _Source(pass_over, 0, {"split": "activations"})


def _measure(
    coder: Dictionary, source: Iterator[_Batch], units: Sequence[float], reference_F: Tensor
) -> tuple[_Sums, Tensor]:
    """The sums of one pass, and the directions ``[F, d]`` of the latents in the units of their reference sites."""
    widths = list(coder.write_widths)
    parts = torch.stack([part / unit for part, unit in zip(wide(_decoder(coder)).split(widths, 1), units, strict=True)])
    directions = parts[reference_F.to(parts.device), torch.arange(coder.d_sae, device=parts.device)].contiguous()
    sums = _Sums(
        RowSums.empty(coder, widths),
        LatentScalingSums.empty(coder.d_sae, len(widths)),
        torch.zeros(len(widths), dtype=torch.float64),
    )
    for batch in source:
        measured = measure_rows(coder, batch.x, batch.target, widths, batch.where)
        latents = _on(measured.latents, directions.device)
        target, x_hat = (wide(each).to(directions.device) for each in (batch.target, measured.x_hat))

        def products(values: Tensor, latents: Latents = latents) -> Tensor:
            each = zip(values.split(widths, 1), units, strict=True)
            return torch.stack([sampled_products(latents, part / unit, directions) for part, unit in each], dim=1)

        norms = torch.stack([torch.linalg.vector_norm(part, dim=1).sum() for part in target.split(widths, 1)])
        scaling = LatentScalingSums.of(latents, products(target - x_hat), products(x_hat))
        sums = sums + _Sums(measured.sums, scaling, norms.cpu())
    return sums, directions


def _units(coder: Dictionary, source: Iterator[_Batch], wanted: SiteUnits | Sequence[float]) -> tuple[float, ...]:
    """What each site is divided by; the mean norms take a pass of their own."""
    widths = list(coder.write_widths)
    if wanted == "raw":
        return (1.0,) * len(widths)
    if wanted == "mean_norm":
        total, n = torch.zeros(len(widths), dtype=torch.float64), 0
        for batch in source:
            parts = wide(batch.target).split(widths, 1)
            total += torch.stack([torch.linalg.vector_norm(part, dim=1).sum() for part in parts]).cpu()
            n += len(batch.target)
        require_enough(n)
        means = tuple((total / n).tolist())
        if not all(0 < mean < math.inf for mean in means):
            raise DataError(f"the sites' mean norms are {means}; a site is all zero or not finite")
        return means
    if isinstance(wanted, str) or len(wanted) != len(widths) or not all(0 < unit < math.inf for unit in wanted):
        raise ConfigError(
            f"site_units must be 'raw', 'mean_norm' or {len(widths)} positive numbers, one for each site written, "
            f"got {wanted!r}"
        )
    return tuple(map(float, wanted))


def _report(
    coder: Dictionary,
    names: tuple[str, ...],
    sums: _Sums,
    directions: Tensor,
    shares: Tensor,
    reference_F: Tensor,
    units: tuple[float, ...],
    cuts: CrosscoderThresholds,
    provenance: dict[str, Any],
) -> CrosscoderReport:
    widths = coder.write_widths
    divisors = torch.cat([torch.full((width,), unit) for width, unit in zip(widths, units, strict=True)])
    in_units = wide(_decoder(coder)).cpu() / divisors.double()
    scaling = sums.scaling.scaling(in_units, widths, directions)
    reference = reference_F.cpu()
    latents = LatentSites(
        decoder_share=shares.cpu(),
        cosine=site_cosines(_decoder(coder), widths).cpu(),
        site_class=site_classes(shares.cpu(), exclusive=cuts.exclusive_share, shared=cuts.shared_share),
        reference=reference,
        beta_error=scaling.error,
        beta_reconstruction=scaling.reconstruction,
        nu_error=scaling.nu_error(reference),
        nu_reconstruction=scaling.nu_reconstruction(reference),
        firing_density=sums.rows.sparsity.firing_density,
    )
    n_tokens = sums.rows.sparsity.n_tokens
    return crosscoder_report(
        latents,
        hook_names=names,
        fves=[site.fve for site in sums.rows.sites],
        mean_norms=(sums.norms / n_tokens).tolist(),
        units=units,
        n_tokens=n_tokens,
        thresholds=cuts,
        **provenance,
    )


def _on(latents: Latents, device: torch.device) -> Latents:
    """``latents`` on ``device``, with float64 values."""
    return replace(
        latents,
        crow=latents.crow.to(device),
        indices=latents.indices.to(device),
        values=wide(latents.values).to(device),
    )


def _decoder(coder: Dictionary) -> Tensor:
    """``[d_sae, d_out]``, a view."""
    return coder.decoder_rows(range(coder.d_sae)).detach()


def _require_crosscoder(coder: Dictionary) -> tuple[str, ...]:
    """The names of the sites written; raises where there is only one, or where latents are in layers."""
    if coder.is_layered:
        raise ConfigError(
            "evaluate_crosscoder compares the sites of one set of latents; a cross-layer transcoder has one set for "
            "each layer: use evaluate or evaluate_replacement"
        )
    widths = coder.write_widths
    if len(widths) < 2:
        raise ConfigError(
            f"evaluate_crosscoder needs a crosscoder over at least two sites; this coder writes one "
            f"({coder.hook_name_out or 'not recorded'}): use evaluate"
        )
    if len(set(widths)) > 1:
        raise ShapeError(
            f"the sites are {list(widths)} wide: directions cannot be compared across widths. Their decoders' shares "
            "can: metrics.decoder_shares(coder.W_dec, coder.config.write_widths)"
        )
    return coder.names_written(len(coder.write_widths))


def _site_number(reference: str | int | None, names: Sequence[str]) -> int | None:
    if reference is None:
        return None
    if isinstance(reference, int) and 0 <= reference < len(names):
        return reference
    if reference in names:
        return names.index(str(reference))
    raise ConfigError(f"reference must be one of {', '.join(names)}, or its number from 0, got {reference!r}")
