"""Which examples a probe is fitted and tested on: balanced, and of different texts.

Shape letters: N examples, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.core.seeds import random_stream
from monosema.evaluation.benchmarks.probing_config import ProbingConfig


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
    groups = group_N.unique()
    if len(groups) < 2:
        raise DataError(f"probes need at least two texts, one of them to be held out, got {len(groups)}")
    order = torch.randperm(len(groups), generator=random_stream(config.seed, "probing", "held out"))
    n_out = min(len(groups) - 1, math.ceil(len(groups) * config.n_test / (config.n_train + config.n_test)))
    is_test_N = torch.isin(group_N, groups[order[:n_out]])
    tasks, notes = [], []
    for number, name in enumerate(names):
        sides = []
        for is_side_N, wanted, side in ((~is_test_N, config.n_train, "train"), (is_test_N, config.n_test, "test")):
            generator = random_stream(config.seed, "probing", name, side)
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
