"""What a measurement of feature absorption found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from monosema.core.words import counted
from monosema.evaluation.benchmarks.config import AbsorptionConfig
from monosema.evaluation.benchmarks.intervals import Interval
from monosema.evaluation.benchmarks.report import BenchmarkReport, Cell, Table


@dataclass(frozen=True, kw_only=True)
class ParentAbsorption:
    """One parent label. Means are over those test rows of it that its probe gets right, intervals over resamples."""

    parent: str
    """The label."""
    full: Interval
    """Fraction of the rows that are fully absorbed."""
    fraction: Interval
    """Mean absorption fraction."""
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
class AbsorptionReport(BenchmarkReport):
    """Feature absorption of a dictionary on a label hierarchy; ``measure_absorption`` defines the scores.

    Intervals are over resamples of the test rows of each parent.
    """

    benchmark = "absorption"

    mean_full: Interval
    """Mean over parents of ``full``: 0 is none."""
    mean_fraction: Interval
    """Mean over parents of ``fraction``."""
    mean_n_main_latents: float
    """Mean number of main latents (feature splitting)."""
    parents: tuple[ParentAbsorption, ...]
    """The parents scored; ``notes`` says which were left out, and why."""
    n_train: int
    """Rows that probes and main latents were fitted on."""
    n_test: int
    """Rows that they were judged on."""
    config: AbsorptionConfig
    """The options."""

    def _title(self) -> str:
        return f"feature absorption of {counted(self.d_sae, 'latent')} at {self.hook_name or 'a site not recorded'}"

    def _tables(self) -> list[Table]:
        heads = ("parent", "full", "fraction", "main latents", "their F1", "probe F1", "rows")
        rows: list[tuple[Cell, ...]] = [
            (each.parent, each.full, each.fraction, len(each.main_latents), each.main_f1, each.probe_f1, each.n_rows)
            for each in self.parents
        ]
        mean: tuple[Cell, ...] = ("mean", self.mean_full, self.mean_fraction, self.mean_n_main_latents, "", "", "")
        return [Table(heads, [*rows, mean])]
