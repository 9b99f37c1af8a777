"""What interchanges of latents did to the answers of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from monosema.evaluation.benchmarks.config import RavelConfig
from monosema.evaluation.benchmarks.intervals import Interval
from monosema.evaluation.benchmarks.report import BenchmarkReport, Cell, Table

MASK = "mask"
"""The choice of latents by a trained mask."""


@dataclass(frozen=True, kw_only=True)
class AttributeScore:
    """One attribute, with the latents of one choice exchanged; intervals are over resamples of pairs."""

    attribute: str
    """The attribute."""
    choice: str
    """How the latents were chosen: ``mask``, or ``top n``."""
    n_latents: int
    """Latents exchanged."""
    cause: Interval
    """Share of pairs in which the base prompt's answer becomes the source's."""
    isolation: Interval
    """Share of prompts for other attributes whose answer stays."""
    disentangle: Interval
    """``(cause + isolation) / 2``."""
    n_cause: int
    """Pairs."""
    n_isolation: int
    """Prompts for other attributes."""


@dataclass(frozen=True, kw_only=True)
class RavelReport(BenchmarkReport):
    """Cause and isolation of attributes; ``cause_and_isolation`` defines the scores."""

    benchmark = "ravel"

    scores: tuple[AttributeScore, ...]
    """By attribute and choice of latents; ``notes`` says which attributes were left out, and why."""
    disentangle: Mapping[str, float]
    """By choice, the mean over attributes."""
    answered: Mapping[str, float]
    """By attribute, the share of entities for which the model's own answer is right; only these are used."""
    n_entities: int
    """Entities that scores are measured on; latents were chosen on others."""
    model_name: str
    """The model."""
    config: RavelConfig
    """The options."""

    def _title(self) -> str:
        return f"cause and isolation at {self.hook_name} of {self.model_name}"

    def _tables(self) -> list[Table]:
        heads = ("attribute", "choice", "latents", "cause", "isolation", "disentangle", "pairs", "known")
        rows: list[tuple[Cell, ...]] = [
            (
                *(each.attribute, each.choice, each.n_latents, each.cause, each.isolation, each.disentangle),
                each.n_cause,
                f"{self.answered[each.attribute]:.0%}",
            )
            for each in self.scores
        ]
        rows += [("mean", choice, "", "", "", value, "", "") for choice, value in self.disentangle.items()]
        return [Table(heads, rows)]
