"""Rows whose norm is far above the median: which they are, and what is served in their place.

A few tokens (attention sinks, delimiters) have norms of hundreds of times the median. They own the squared error of a
dictionary and hide what it does on all the others, so by default they are left out of training and evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError, FileError
from monosema.core.words import counted
from monosema.data.sites import RowLayout

DEFAULT_MULTIPLE = 10.0
"""Of the median norm, beyond which a row is an outlier."""

MEDIAN_ROWS = 4096
"""Rows, the first ones of a source, that the median norms are of."""

RECORDED = _MULTIPLE, _MEDIANS = "outlier_norm_multiple", "median_norms"
"""What a dictionary's metadata call the rule."""

_SAFE = (1e-18, 1e18)
"""Norms in between are summed in float32: no square overflows, and none that matters underflows."""

_VALUES_AT_ONCE = 2**20
"""Values widened to float32 at a time."""


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norms ``[n]`` float64 on the CPU of ``rows [n, d]``; of float32 rows or narrower, none overflows."""
    at_once = max(1, _VALUES_AT_ONCE // max(1, rows.shape[1]))
    return torch.cat([_norms(part) for part in rows.split(at_once)])


def _norms(rows: Tensor) -> Tensor:
    wide = rows if rows.dtype == torch.float64 else rows.float()
    norms = torch.linalg.vector_norm(wide, dim=1).to("cpu", torch.float64)
    unsafe = ((norms < _SAFE[0]) | ~(norms <= _SAFE[1])).nonzero().squeeze(1)
    if len(unsafe):
        some = wide[unsafe.to(wide.device)].to("cpu", torch.float64)
        largest = some.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        norms[unsafe] = torch.linalg.vector_norm(some / largest, dim=1) * largest.squeeze(1)
    return norms


@final
@dataclass(frozen=True)
class NormRule:
    """A row is an outlier if its norm at any site exceeds ``multiple`` times the median norm there."""

    multiple: float
    """At least 1."""
    sites: tuple[tuple[str, int], ...] = ()
    """Name and width of each site, in the order of the columns."""
    medians: tuple[float, ...] | None = None
    """By site, the median of the norms that are not 0; 0 where all are, and then no row is an outlier there. None
    before any row was seen."""

    def estimated(self, sites: Sequence[tuple[str, int]], parts: Iterable[Tensor]) -> NormRule:
        """The rule with the medians of all rows of ``parts``, each ``[n, d]`` with the columns of ``sites``."""
        widths = [width for _, width in sites]
        norms = [[row_norms(of_site) for of_site in part.split(widths, 1)] for part in parts]
        medians = tuple(_median(torch.cat(of_site)) for of_site in zip(*norms, strict=True))
        return replace(self, sites=tuple(sites), medians=medians)

    def outliers(self, rows: Tensor) -> Tensor:
        """``[n]`` bool on the CPU: which of ``rows [n, d]`` are outliers; ``d`` is the width of the first sites or all.

        Raises ``DataError`` where the widths do not add up to ``d``.
        """
        assert self.medians is not None
        found, column = torch.zeros(len(rows), dtype=torch.bool), 0
        for (_, width), median in zip(self.sites, self.medians, strict=True):
            if column == rows.shape[1]:
                break
            if median > 0:
                found |= row_norms(rows[:, column : column + width]) > self.multiple * median
            column += width
        if column != rows.shape[1]:
            raise DataError(
                f"median norms are known for sites {[width for _, width in self.sites]} wide, rows of "
                f"{counted(rows.shape[1], 'column')} came; give the rows of those sites, or outlier_norm_multiple=None"
            )
        return found

    def of_sites(self, names: Sequence[str]) -> NormRule:
        """The rule for some of the sites, in the order of ``names``."""
        if self.medians is None:
            return self
        known = {site[0]: (site, median) for site, median in zip(self.sites, self.medians, strict=True)}
        chosen = [known[name] for name in names]
        return replace(self, sites=tuple(site for site, _ in chosen), medians=tuple(median for _, median in chosen))


def outlier_record(rule: NormRule | None) -> dict[str, Any]:
    """What a dictionary's metadata say of ``rule``, JSON-able: ``[name, width, median]`` of each site."""
    medians = None if rule is None or rule.medians is None else rule.medians
    return {
        _MULTIPLE: None if rule is None else rule.multiple,
        _MEDIANS: None
        if rule is None or medians is None
        else [[name, width, median] for (name, width), median in zip(rule.sites, medians, strict=True)],
    }


def recorded_rule(metadata: Mapping[str, Any]) -> NormRule | None:
    """The rule in a dictionary's metadata, without medians where it records none; None where it was off.

    A dictionary that records nothing of outliers gets the default. Raises ``FileError`` for a damaged record.
    """
    multiple, medians = metadata.get(_MULTIPLE, DEFAULT_MULTIPLE), metadata.get(_MEDIANS)
    if multiple is None:
        return None
    if not _is_number(multiple) or multiple < 1:
        raise FileError(f"the dictionary's {_MULTIPLE} must be a number of at least 1, or null; it is {multiple!r}")
    if medians is None:
        return NormRule(float(multiple))
    if not isinstance(medians, list) or not all(map(_is_site, medians)):
        raise FileError(f"the dictionary's {_MEDIANS} must be a list of [name, width, median], got {medians!r:.80}")
    sites = tuple((name, width) for name, width, _ in medians)
    return NormRule(float(multiple), sites, tuple(float(median) for _, _, median in medians))


def check_multiple(multiple: float | None) -> None:
    """Raise ``ConfigError`` for a multiple below 1, which would leave out ordinary rows."""
    if multiple is not None and not (_is_number(multiple) and multiple >= 1):
        raise ConfigError(f"outlier_norm_multiple must be at least 1, or None to leave no row out, got {multiple!r}")


def instead_of(outlier: Tensor, ordinary: Tensor) -> Tensor:
    """What takes the places of m outliers, ``outlier [n]`` bool: entry ``⌊j·k/m⌋`` of the k ``ordinary`` for the j-th.

    So a source serves as many rows as without the rule. Raises ``DataError`` where nothing is ordinary.
    """
    m, k = int(outlier.sum()), len(ordinary)
    if k == 0:
        raise DataError(
            f"all of {counted(m, 'row')} in a row have norms far above the median of the first rows; shuffle the "
            "rows, raise "
            "outlier_norm_multiple, or set it to None to train on all of them"
        )
    return ordinary[torch.arange(m, device=ordinary.device) * k // m]


@final
class OutlierFilter:
    """The rule of one source of rows: off, not known yet, or known; and how many rows it has left out so far."""

    def __init__(self, multiple: float | None, layout: RowLayout):
        check_multiple(multiple)
        self._sites = layout.reads if layout.is_autoencoder else layout.reads + layout.writes
        self.rule = None if multiple is None else NormRule(float(multiple))
        self.n_left_out = 0

    @property
    def multiple(self) -> float | None:
        return None if self.rule is None else self.rule.multiple

    @property
    def needs_rows(self) -> bool:
        """Whether medians are wanted and not known."""
        return self.rule is not None and self.rule.medians is None

    def estimate(self, parts: Iterable[Tensor]) -> None:
        """Take the medians of the source's first rows, in parts ``[n, d]``."""
        assert self.rule is not None
        self.rule = self.rule.estimated(self._sites, parts)

    def outliers(self, rows: Tensor) -> Tensor | None:
        """``[n]`` bool on the CPU; None where the rule is off or nothing is left out."""
        if self.rule is None:
            return None
        found = self.rule.outliers(rows)
        return found if bool(found.any()) else None

    def served(self, rows: Tensor, spare: Callable[[], Tensor], *, counts: bool = True) -> Tensor:
        """``rows [n, d]`` with ordinary ones in the place of outliers, which are counted if ``counts``.

        Those are of the same rows or, where all are outliers, of ``spare()``: the source's first rows.
        """
        outlier = self.outliers(rows)
        if outlier is None:
            return rows
        if counts:
            self.n_left_out += int(outlier.sum())
        filled, places = rows.clone(), outlier.to(rows.device)
        ordinary = rows[~places]
        if len(ordinary) == 0:
            others = spare().to(rows.device)
            bad = self.outliers(others)
            ordinary = others if bad is None else others[~bad.to(others.device)]
        filled[places] = instead_of(places, ordinary)
        return filled

    def turn_off(self) -> None:
        """Leave no row out from now on."""
        self.rule = None

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; empty where the rule is off."""
        return {} if self.rule is None else {**outlier_record(self.rule), "n_left_out": self.n_left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the ``state`` of a source with the same rule."""
        if self.rule is None:
            return
        self.rule = recorded_rule({_MULTIPLE: self.rule.multiple, _MEDIANS: state.get(_MEDIANS)})
        self.n_left_out = int(state.get("n_left_out", 0))


def _median(norms: Tensor) -> float:
    """The lower median of the norms that are not 0; 0 where all are."""
    norms = norms[norms > 0]
    return float(norms.median()) if len(norms) else 0.0


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_site(entry: object) -> bool:
    match entry:
        case [str(), int(width), int() | float() as median]:
            return type(width) is int and width > 0 and _is_number(median) and median >= 0
    return False
