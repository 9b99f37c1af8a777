"""What k-sparse probing found."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from monosema.evaluation.benchmarks.intervals import Interval
from monosema.evaluation.benchmarks.probing_config import ProbingConfig
from monosema.evaluation.report import labelled, plain_value, shown


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
class ProbingReport:
    """Accuracies of probes on a coder's latents and on the activations it reads; ``probe_texts`` defines them."""

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
    d_sae: int
    """Latents in all."""
    hook_name: str
    """Site read."""
    model_name: str
    """The model."""
    config: ProbingConfig
    """The options."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; NaN becomes None."""
        return {each.name: plain_value(getattr(self, each.name)) for each in fields(self)}

    def __str__(self) -> str:
        lines = [
            f"{self.d_sae:,} latents at {self.hook_name} of {self.model_name}: accuracy of probes on k of them, on k "
            f"of {self.d_in:,} dimensions, and on all dimensions"
        ]
        means = [
            f"{name:<29} {value}"
            for each in self.sparse
            for name, value in ((f"latents, k={each.k}", each.latents), (f"dimensions, k={each.k}", each.activations))
        ]
        lines += labelled("mean of tasks", [*means, f"{'all dimensions':<29} {self.activations}"])
        width = max(len(task.label) for task in self.tasks)
        lines += labelled(f"by {self.unit}", [f"{task.label:<{width}}  {_brief(task)}" for task in self.tasks])
        return "\n".join([*lines, *labelled("note", self.notes)])


def _brief(task: ProbedTask) -> str:
    by_k = [f"k={each.k} {shown(each.latents.value)} / {shown(each.activations.value)}" for each in task.sparse]
    return "  ".join([*by_k, f"all {shown(task.activations.value)}", f"of {task.n_test:,}"])
