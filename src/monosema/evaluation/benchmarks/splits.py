"""Which examples something is fitted and tested on; what belongs together is never on both sides.

Shape letters: N examples, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.core.seeds import random_stream
from monosema.core.words import counted
from monosema.evaluation.benchmarks.config import ProbingConfig


def held_out(group_N: Tensor, fraction: float, seed: int, purpose: str, strata_N: Tensor | None = None) -> Tensor:
    """[N] bool: the examples of the groups held out, a ``fraction`` of them, at least one of two, and never all.

    ``group_N`` int64 says which examples belong together (tokens of a document, copies of a text). With ``strata_N``
    (int64, such as classes) the share is that of each stratum; a group is in the stratum of its first example.
    """
    groups, index = group_N.unique(return_inverse=True)
    first = torch.full((len(groups),), len(group_N)).scatter_reduce_(0, index, torch.arange(len(group_N)), "amin")
    stratum = torch.zeros_like(groups) if strata_N is None else strata_N[first]
    generator = random_stream(seed, "benchmark", purpose, "held out")
    is_out = torch.zeros(len(groups), dtype=torch.bool)
    for each in stratum.unique().tolist():
        own = (stratum == each).nonzero()[:, 0]
        n_out = min(len(own) - 1, max(1, round(fraction * len(own))))
        is_out[own[torch.randperm(len(own), generator=generator)[:n_out]]] = True
    return is_out[index]


def train_and_test(
    group_N: Tensor, fraction: float, seed: int, purpose: str, strata_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Ascending places of the examples to fit on and of those to test on, split by ``held_out``.

    Raises ``DataError`` where a side has no example of a stratum.
    """
    is_test_N = held_out(group_N, fraction, seed, purpose, strata_N)
    for stratum in strata_N.unique():
        n_own, n_test = int((strata_N == stratum).sum()), int(is_test_N[strata_N == stratum].sum())
        if n_test in (0, n_own):
            raise DataError(
                f"{counted(n_own, 'row')} of a class cannot be split: it needs a text to fit on and another to test "
                "on, each with "
                "one label"
            )
    return (~is_test_N).nonzero()[:, 0], is_test_N.nonzero()[:, 0]


@dataclass(frozen=True)
class Side:
    """The examples of one side; as many of each class."""

    examples: Tensor
    """[n] int64, ascending."""
    labels: Tensor
    """[n] bool."""


@dataclass(frozen=True)
class ProbeTask:
    """One label to be told from everything else."""

    name: str
    """The label."""
    train: Side
    """What the probe is fitted on."""
    test: Side
    """What its accuracy is measured on."""


@dataclass(frozen=True)
class Tasks:
    """The tasks that have enough examples."""

    tasks: tuple[ProbeTask, ...]
    """In the order of the labels."""
    notes: tuple[str, ...]
    """Which were left out, and why."""

    @property
    def examples(self) -> Tensor:
        """Every example of any task, once, ascending."""
        return torch.cat([side.examples for task in self.tasks for side in (task.train, task.test)]).unique()


def balanced_tasks(names: Sequence[str], labels_NL: Tensor, group_N: Tensor, config: ProbingConfig) -> Tasks:
    """A task for each label, its negatives drawn from all examples without it.

    ``group_N`` int64 is the text of each example; a share ``n_test / (n_train + n_test)`` of the texts is held out for
    all tasks alike, so that no text is on both sides.

    Raises ``DataError`` where there are fewer than two texts, or no task has enough examples.
    """
    if len(group_N.unique()) < 2:
        raise DataError(f"probes need at least two texts, one of them to be held out, got {len(group_N.unique())}")
    fraction = config.n_test / (config.n_train + config.n_test)
    is_test_N = held_out(group_N, fraction, config.seed, "probing")
    tasks, notes = [], []
    for number, name in enumerate(names):
        sides = []
        for is_side_N, wanted, side in ((~is_test_N, config.n_train, "train"), (is_test_N, config.n_test, "test")):
            generator = random_stream(config.seed, "benchmark", "probing", name, side)
            classes = [(is_side_N & (labels_NL[:, number] == label)).nonzero()[:, 0] for label in (True, False)]
            n_each = min(wanted // 2, *map(len, classes))
            if n_each < config.min_examples:
                counts = " and ".join(f"{len(each):,}" for each in classes)
                notes.append(f"{name} is left out: {counts} {side} examples with and without it (see min_examples)")
                break
            drawn = [each[torch.randperm(len(each), generator=generator)[:n_each]] for each in classes]
            examples = torch.cat(drawn).sort().values
            sides.append(Side(examples, labels_NL[examples, number]))
        else:
            tasks.append(ProbeTask(name, *sides))
    if not tasks:
        raise DataError(f"no label has enough examples of both classes to be probed: {'; '.join(notes)}")
    return Tasks(tuple(tasks), tuple(notes))
