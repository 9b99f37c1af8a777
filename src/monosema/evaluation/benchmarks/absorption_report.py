"""What a measurement of feature absorption found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monosema.evaluation.benchmarks.shares import Interval
from monosema.evaluation.benchmarks.tables import plain_fields, table


@dataclass(frozen=True, kw_only=True)
class ParentAbsorption:
    """One parent label. Means are over the test rows of the parent that its probe gets right."""

    parent: str
    """The label."""
    full: float
    """Fraction of the rows that are fully absorbed."""
    full_interval: Interval
    """Over resamples of the rows."""
    fraction: float
    """Mean absorption fraction."""
    fraction_interval: Interval
    """Over resamples of the rows."""
    silent_fraction: float
    """Fraction of the rows on which all main latents are silent, absorbed or not."""
    n_rows: int
    """Rows judged."""
    probe_f1: float
    """F1 of the probe on the test rows."""
    main_latents: tuple[int, ...]
    """The parent's own latents, best first; more than one is feature splitting."""
    main_f1: float
    """F1 of a probe on them, on the test rows."""
    absorbing_latents: Mapping[int, int]
    """By latent, the rows it absorbs fully; most first."""
    children: Mapping[str, float]
    """By child, the fraction of its rows that are fully absorbed."""


@dataclass(frozen=True, kw_only=True)
class AbsorptionReport:
    """Feature absorption of a dictionary on a label hierarchy; ``measure_absorption`` defines the scores."""

    mean_full: float
    """Mean over parents of ``full``: 0 is none."""
    mean_full_interval: Interval
    """Over resamples of the test rows of each parent."""
    mean_fraction: float
    """Mean over parents of ``fraction``."""
    mean_fraction_interval: Interval
    """Over resamples of the test rows of each parent."""
    mean_n_main_latents: float
    """Mean number of main latents (feature splitting)."""
    parents: tuple[ParentAbsorption, ...]
    """The parents scored."""
    skipped: Mapping[str, str]
    """The parents left out, and why."""
    n_train: int
    """Rows that probes and main latents were fitted on."""
    n_test: int
    """Rows that they were judged on."""
    d_sae: int
    """Latents of the dictionary."""
    hook_name: str
    """Its site."""
    seed: int
    """Of the split and the resamples."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; NaN becomes None."""
        return plain_fields(self)

    def __str__(self) -> str:
        title = f"feature absorption of {self.d_sae:,} latents at {self.hook_name or 'a site not recorded'}"
        rows = [
            (
                each.parent,
                each.full,
                str(each.full_interval),
                each.fraction,
                str(each.fraction_interval),
                len(each.main_latents),
                each.main_f1,
                each.probe_f1,
                each.n_rows,
            )
            for each in self.parents
        ]
        heads = ("parent", "full", "95 %", "fraction", "95 %", "main latents", "their F1", "probe F1", "rows")
        mean = ("mean", self.mean_full, str(self.mean_full_interval), self.mean_fraction)
        rows.append((*mean, str(self.mean_fraction_interval), self.mean_n_main_latents, "", "", ""))  # type: ignore[arg-type]
        skipped = [f"{parent}: left out, {reason}" for parent, reason in self.skipped.items()]
        return table(title, heads, rows, (*skipped, f"seed {self.seed}, {self.n_train:,} rows fitted on"))
