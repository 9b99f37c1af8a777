"""What k-sparse probing found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monosema.core.words import counted
from monosema.evaluation.benchmarks.config import ProbingConfig
from monosema.evaluation.benchmarks.intervals import Interval
from monosema.evaluation.benchmarks.report import BenchmarkReport, Cell, Table


@dataclass(frozen=True, kw_only=True)
class SparseAccuracy:
    """Held-out accuracy of probes that read ``k`` numbers."""

    k: int
    """How many."""
    latents: Interval
    """Of latents (SAEBench's ``sae_top_k_test_accuracy``)."""
    activations: Interval
    """Of the activation's dimensions (``llm_top_k_test_accuracy``)."""


@dataclass(frozen=True, kw_only=True)
class ProbedTask:
    """One label told from everything else; intervals are over held-out texts."""

    label: str
    """What is told."""
    sparse: tuple[SparseAccuracy, ...]
    """By k, ascending."""
    activations: Interval
    """Accuracy of a probe that reads the whole activation."""
    latents: tuple[int, ...]
    """The latents chosen, the one with the largest difference of means first; the first k of them are read."""
    n_train: int
    """Examples fitted on, half of each class."""
    n_test: int
    """Held-out examples, half of each class: chance is 0.5."""
    converged: bool
    """Whether every probe reached its minimum."""


@dataclass(frozen=True, kw_only=True)
class ProbingReport(BenchmarkReport):
    """Accuracies of probes on a coder's latents and on the activations it reads; ``probe_texts`` defines them."""

    benchmark = "probe"

    sparse: tuple[SparseAccuracy, ...]
    """Means over tasks, with intervals over tasks."""
    activations: Interval
    """The same of probes that read the whole activation."""
    tasks: tuple[ProbedTask, ...]
    """Each task."""
    unit: Literal["text", "token"]
    """What was labelled; of a text the mean over its tokens is read."""
    d_in: int
    """Width of the activations."""
    model_name: str
    """The model."""
    config: ProbingConfig
    """The options."""

    def _title(self) -> str:
        return (
            f"{counted(self.d_sae, 'latent')} at {self.hook_name} of {self.model_name}: accuracy of probes on k of "
            "them, on k "
            f"of {counted(self.d_in, 'dimension')}, and on all dimensions"
        )

    def _tables(self) -> list[Table]:
        means = [("mean of tasks", each.k, each.latents, each.activations) for each in self.sparse]
        tasks: list[tuple[Cell, ...]] = [
            (task.label, *(each.latents for each in task.sparse), task.activations, task.n_test) for task in self.tasks
        ]
        by_k = [f"latents, k={each.k}" for each in self.sparse]
        return [
            Table(("", "k", "latents", "dimensions"), [*means, ("", "all", "", self.activations)]),
            Table((f"by {self.unit}", *by_k, "all dimensions", "examples"), tasks),
        ]
