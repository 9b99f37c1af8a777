"""What a comparison of a crosscoder's sites found: figures for people, and tensors with each latent's numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from monosema.core.config import made_of
from monosema.core.errors import ConfigError, FileError, unknown_name
from monosema.core.files import read_json, write_atomically, write_json
from monosema.core.plain import mapping_in, texts_in
from monosema.core.printable import escaped, terminal_lines
from monosema.core.tensors import read_tensors
from monosema.evaluation.report import Overlap, labelled, plain_value, shown
from monosema.metrics import BETWEEN, NOWHERE, SHARED

_FORMAT = "monosema crosscoder report 1"
_SIZES_DIFFER = 1.5


@dataclass(frozen=True, kw_only=True)
class CrosscoderThresholds:
    """Where shares and ν are cut into classes."""

    exclusive_share: float = 0.9
    """A latent is a site's own where that site's share of its decoder norms exceeds this."""
    shared_share: float = 0.3
    """It is shared where every site has at least this share (of two sites; ``2/S`` of it for S)."""
    nu_error: float = 0.2
    """ν^ε from which another site has an exclusive latent after all (complete shrinkage)."""
    nu_reconstruction: float = 0.5
    """ν^r from which other latents stand for it there (latent decoupling). Both as in the code of Minder et al."""

    def __post_init__(self) -> None:
        for name in ("nu_error", "nu_reconstruction"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"CrosscoderThresholds: {name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LatentSites:
    """Each latent at each site; float64 on the CPU, S sites in the report's order."""

    decoder_share: Tensor
    """``[d_sae, S]``: ``‖d^m_j‖ / Σ_s ‖d^s_j‖``; NaN for a zero decoder."""
    cosine: Tensor
    """``[d_sae, pairs]``: cosine of the decoder rows at two sites, in the order (0, 1), (0, 2), …, (1, 2), …."""
    site_class: Tensor
    """``[d_sae]`` int64: the site it belongs to alone, -1 for shared, -2 between the thresholds, -3 zero decoder."""
    reference: Tensor
    """``[d_sae]`` int64: the site whose decoder row is the direction of β."""
    beta_error: Tensor
    """``[d_sae, S]``: β on the error with the latent's own contribution added back; NaN where it never fired."""
    beta_reconstruction: Tensor
    """``[d_sae, S]``: β on the reconstruction."""
    nu_error: Tensor
    """``[d_sae, S]``: β over that at the reference site, of the error."""
    nu_reconstruction: Tensor
    """``[d_sae, S]``: the same of the reconstruction."""
    firing_density: Tensor
    """``[d_sae]``: fraction of tokens on which it fired."""


@dataclass(frozen=True, kw_only=True)
class SiteFigures:
    """One site written, and the latents that are its own by their decoder norms."""

    hook_name: str
    """The site."""
    fve: float
    """Fraction of its variance explained."""
    mean_norm: float
    """Mean norm of its activations."""
    unit: float
    """What its activations and decoder rows were divided by."""
    n_exclusive: int
    """Latents that are its own by their decoder norms."""
    n_confirmed: int
    """Of these, measured with the site as reference and below both thresholds of ν at every other site."""
    n_shrunk: int
    """At or above that of ν^ε at another site: complete shrinkage."""
    n_decoupled: int
    """At or above that of ν^r at another site: latent decoupling (may be shrunk too)."""
    n_unmeasured: int
    """Never fired, explain nothing at their own site, or were measured with another reference."""


@dataclass(frozen=True, kw_only=True)
class CrosscoderReport:
    """Which latents of a crosscoder belong to one site, by decoder norms, and whether latent scaling confirms it."""

    sites: tuple[SiteFigures, ...]
    """The sites written."""
    n_shared: int
    """Latents on all sites alike."""
    n_between: int
    """Latents between the thresholds of shared and exclusive."""
    n_zero: int
    """Latents with a zero decoder."""
    mean_cosine_shared: float
    """Mean cosine of shared latents' decoder rows over pairs of sites; NaN where none is shared."""
    n_tokens: int
    """Tokens measured: positions that are not special."""
    n_special_positions: int | None = None
    """Special positions left out."""
    n_outlier_rows: int | None = None
    """Rows left out because their norm is far above the median; None where rows of any norm are measured."""
    thresholds: CrosscoderThresholds = CrosscoderThresholds()
    """Where the classes were cut."""
    model_name: str | None = None
    """The model or models."""
    split: str = ""
    """Which tokens: the split's name, ``"contexts"`` for ids given, ``"activations"`` without text."""
    tokens_fingerprint: str | None = None
    """sha256 of that split."""
    overlap: Overlap = "unknown"
    """Whether the coder was trained on these tokens."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""
    latents: LatentSites
    """Each latent's numbers."""

    @property
    def d_sae(self) -> int:
        """Latents in all."""
        return len(self.latents.reference)

    def exclusive(self, hook_name: str, *, confirmed: bool = False) -> Tensor:
        """Indices of the latents that are this site's own; with ``confirmed``, those that latent scaling confirms."""
        names = [site.hook_name for site in self.sites]
        if hook_name not in names:
            raise unknown_name("site of the crosscoder", hook_name, names)
        site = names.index(hook_name)
        chosen = _verdicts(self.latents, self.thresholds, site)[0] if confirmed else self.latents.site_class == site
        return chosen.nonzero().squeeze(1)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values, without ``latents``; NaN becomes None."""
        return {each.name: plain_value(getattr(self, each.name)) for each in fields(self) if each.name != "latents"}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figures as JSON to ``path`` and the latents' tensors beside it as ``.safetensors``."""
        target = Path(path)
        tensors = {each.name: getattr(self.latents, each.name).contiguous() for each in fields(LatentSites)}
        write_atomically(target.with_suffix(".safetensors"), to_bytes(tensors))
        write_json(target, {"format": _FORMAT, **self.to_dict()})
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CrosscoderReport:
        """What ``save`` wrote. Raises ``FileError`` where a file is missing, damaged or of another kind."""
        target = Path(path)
        plain = read_json(target)
        if not isinstance(plain, dict) or plain.get("format") != _FORMAT:
            raise FileError(f"{target} is not a crosscoder report of this version ({_FORMAT!r})")
        file = target.with_suffix(".safetensors")
        try:
            latents = LatentSites(**read_tensors(file, integers=("site_class", "reference")))
            values = {name: value for name, value in plain.items() if name != "format"}
            values["mean_cosine_shared"] = _number(values["mean_cosine_shared"])
            values["thresholds"] = made_of(CrosscoderThresholds, mapping_in(values, "thresholds", target), target)
            values["notes"] = texts_in(values, "notes", target)
            sites = tuple(
                made_of(SiteFigures, {k: _number(v) for k, v in site.items()}, target) for site in values.pop("sites")
            )
            report = made_of(cls, {**values, "sites": sites, "latents": latents}, target)
        except FileError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FileError(f"{target} is damaged: {type(error).__name__}: {error}") from error
        if latents.decoder_share.shape != (report.d_sae, len(sites)):
            raise FileError(f"{file} does not belong to {target}: another number of latents or sites")
        return report

    def __str__(self) -> str:
        lines = [self._title()]
        for name, site in zip(_short([site.hook_name for site in self.sites]), self.sites, strict=True):
            lines += labelled(name, _lines(site))
        lines += labelled("other latents", [f"{name:<29} {text}" for name, text in self._others()])
        lines += labelled("data", [f"{name:<29} {text}" for name, text in self._data()])
        return terminal_lines([*lines, *labelled("note", self.notes)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        names = [each.name for each in fields(SiteFigures)]
        heads = "".join(f'<th scope="col">{name}</th>' for name in names)
        sites = "".join(
            "<tr>" + "".join(f"<td>{escaped(shown(getattr(site, name)))}</td>" for name in names) + "</tr>"
            for site in self.sites
        )
        rows = "".join(
            f"<tr><td>{name}</td><td>{escaped(text)}</td></tr>" for name, text in (*self._others(), *self._data())
        )
        notes = "".join(f"<li>{escaped(note)}</li>" for note in self.notes)
        return (
            f"<table><caption>{escaped(self._title())}</caption><thead><tr>{heads}</tr></thead>"
            f"<tbody>{sites}</tbody></table><table><tbody>{rows}</tbody></table><ul>{notes}</ul>"
        )

    def _title(self) -> str:
        of_model = f" of {self.model_name}" if self.model_name else ""
        return f"{self.d_sae:,} latents over {len(self.sites)} sites{of_model}"

    def _others(self) -> list[tuple[str, str]]:
        names = ("n_shared", "mean_cosine_shared", "n_between", "n_zero")
        return [(name, shown(getattr(self, name))) for name in names]

    def _data(self) -> list[tuple[str, str]]:
        names = ("split", "n_tokens", "n_special_positions", "n_outlier_rows", "tokens_fingerprint", "overlap")
        values = [(name, getattr(self, name)) for name in names]
        return [(name, shown(value)) for name, value in values if value is not None]


def crosscoder_report(
    latents: LatentSites,
    *,
    hook_names: Sequence[str],
    fves: Sequence[float],
    mean_norms: Sequence[float],
    units: Sequence[float],
    n_tokens: int,
    thresholds: CrosscoderThresholds,
    notes: Sequence[str] = (),
    **provenance: Any,
) -> CrosscoderReport:
    """The report of what was measured; ``provenance`` are fields of the report that say on what."""
    figures = []
    for site, name in enumerate(hook_names):
        confirmed, shrunk, decoupled, unmeasured = _verdicts(latents, thresholds, site)
        figures.append(
            SiteFigures(
                hook_name=name,
                fve=fves[site],
                mean_norm=mean_norms[site],
                unit=units[site],
                n_exclusive=int((latents.site_class == site).sum()),
                n_confirmed=int(confirmed.sum()),
                n_shrunk=int(shrunk.sum()),
                n_decoupled=int(decoupled.sum()),
                n_unmeasured=int(unmeasured.sum()),
            )
        )
    notes = [*notes]
    in_units = [norm / unit for norm, unit in zip(mean_norms, units, strict=True)]
    if min(in_units) == 0 or max(in_units) / min(in_units) > _SIZES_DIFFER:
        shown_norms = ", ".join(f"{norm:.3g}" for norm in in_units)
        notes.append(
            f"the sites differ in size (mean norms {shown_norms}), which moves the shares: site_units='mean_norm'"
        )
    if provenance.get("overlap") == "same tokens":
        notes.append("the coder was trained on these very tokens; evaluate on a held-out split")
    shared = latents.site_class == SHARED
    return CrosscoderReport(
        sites=tuple(figures),
        n_shared=int(shared.sum()),
        n_between=int((latents.site_class == BETWEEN).sum()),
        n_zero=int((latents.site_class == NOWHERE).sum()),
        mean_cosine_shared=float(latents.cosine[shared].mean()) if bool(shared.any()) else math.nan,
        n_tokens=n_tokens,
        thresholds=thresholds,
        notes=tuple(notes),
        latents=latents,
        **provenance,
    )


def _verdicts(
    latents: LatentSites, thresholds: CrosscoderThresholds, site: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the latents that are this site's own: which are confirmed, shrunk, decoupled, unmeasured; ``[d_sae]`` bool."""
    own = latents.site_class == site
    others = torch.arange(latents.nu_error.shape[1]) != site
    error, reconstruction = latents.nu_error[:, others], latents.nu_reconstruction[:, others]
    undefined = error.isnan().any(1) | reconstruction.isnan().any(1)
    measured = own & (latents.reference == site) & ~undefined
    shrunk = measured & (error >= thresholds.nu_error).any(1)
    decoupled = measured & (reconstruction >= thresholds.nu_reconstruction).any(1)
    return measured & ~shrunk & ~decoupled, shrunk, decoupled, own & ~measured


def _lines(site: SiteFigures) -> list[str]:
    values = asdict(site)
    return [f"{name:<29} {shown(value)}" for name, value in values.items() if name != "unit" or value != 1.0]


def _short(names: Sequence[str]) -> list[str]:
    """Labels: the models' names, where those tell the sites apart."""
    models = [name.split(":")[0] for name in names]
    apart = len(set(models)) == len(models) and all(":" in name for name in names)
    return models if apart else [f"site {number}" for number in range(len(names))]


def _number(value: Any) -> Any:
    return math.nan if value is None else value
