"""Which examples a probe sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monosema.core.errors import ConfigError, DataError
from monosema.evaluation.benchmarks import ProbingConfig
from monosema.evaluation.benchmarks.splits import balanced_tasks, held_out, train_and_test

N = 1000
GROUPS = torch.arange(N) // 10
LABELS = torch.stack([torch.arange(N) % 3 == 0, torch.arange(N) < 20, torch.arange(N) >= 0], dim=1)
CONFIG = ProbingConfig(n_train=160, n_test=40, min_examples=15)


def test_classes_are_balanced_and_no_text_is_on_both_sides() -> None:
    found = balanced_tasks(["third", "rare", "all"], LABELS, GROUPS, CONFIG)
    assert [task.name for task in found.tasks] == ["third"]
    task = found.tasks[0]
    for side, n in ((task.train, 160), (task.test, 40)):
        assert len(side.examples) == len(side.examples.unique()) == n
        assert int(side.labels.sum()) == n // 2
        assert torch.equal(side.labels, LABELS[side.examples, 0])
    assert not set(GROUPS[task.train.examples].tolist()) & set(GROUPS[task.test.examples].tolist())
    assert found.examples.tolist() == sorted([*task.train.examples.tolist(), *task.test.examples.tolist()])
    assert "all is left out: 800 and 0 train examples" in found.notes[1]
    assert found.notes[0].startswith("rare is left out")


def test_a_fifth_of_the_texts_is_held_out_by_the_seed() -> None:
    config = ProbingConfig(n_train=4000, n_test=1000, min_examples=1)
    task = balanced_tasks(["third"], LABELS[:, :1], GROUPS, config).tasks[0]
    out = GROUPS[task.test.examples].unique()
    assert len(out) == 20  # of 100; all their positives, and as many negatives
    assert len(task.test.examples) == 2 * int(LABELS[torch.isin(GROUPS, out), 0].sum())
    again = balanced_tasks(["third"], LABELS[:, :1], GROUPS, config).tasks[0]
    assert torch.equal(again.train.examples, task.train.examples)
    other = balanced_tasks(["third"], LABELS[:, :1], GROUPS, ProbingConfig(min_examples=1, seed=1)).tasks[0]
    assert not torch.equal(GROUPS[other.test.examples].unique(), out)


def test_a_share_of_the_groups_of_each_stratum_is_held_out() -> None:
    strata = torch.tensor([0] * 40 + [1] * 20)
    groups = torch.arange(60) // 2
    out = held_out(groups, 0.2, 3, "here", strata)
    assert (int(out[:40].sum()), int(out[40:].sum())) == (8, 4)
    assert torch.equal(out[::2], out[1::2])
    assert torch.equal(out, held_out(groups, 0.2, 3, "here", strata))
    assert not torch.equal(out, held_out(groups, 0.2, 4, "here", strata))
    train, test = train_and_test(groups, 0.2, 3, "here", strata)
    assert torch.equal(test, out.nonzero()[:, 0])
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(60))
    assert int(held_out(torch.arange(2), 0.01, 0, "here").sum()) == 1


def test_a_class_that_is_on_one_side_only_is_refused() -> None:
    with pytest.raises(DataError, match="2 rows of a class cannot be split"):
        train_and_test(torch.tensor([0, 0, 1, 2]), 0.5, 0, "here", torch.tensor([0, 0, 1, 1]))


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="at least two texts"):
        balanced_tasks(["third"], LABELS[:, :1], torch.zeros(N, dtype=torch.int64), CONFIG)
    with pytest.raises(DataError, match=r"no label has enough.*all is left out"):
        balanced_tasks(["all"], LABELS[:, 2:], GROUPS, CONFIG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": ()}, "ks must be"),
        ({"ks": (0, 1)}, "ks must be"),
        ({"ks": (5, 1)}, "ks must be"),
        ({"n_train": 1}, "n_train must be at least 2"),
        ({"n_test": 0}, "n_test must be at least 2"),
        ({"C": 0.0}, "C must be above 0"),
        ({"min_examples": 0}, "min_examples must be at least 1"),
        ({"n_tokens": 0}, "n_tokens must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProbingConfig(**options)
