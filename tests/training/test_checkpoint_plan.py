"""Which steps are checkpointed, and which checkpoints stay."""

from __future__ import annotations

import pytest

from monosema.core.errors import ConfigError
from monosema.training import CheckpointPlan, TrainingConfig
from monosema.training.config import is_better


def plan(n_steps: int, **options: object) -> CheckpointPlan:
    return CheckpointPlan.of(TrainingConfig(tokens=n_steps * 10, **options), 10, n_steps)


def steps(of: CheckpointPlan) -> tuple[list[int], list[int]]:
    every = range(1, of.n_steps + 1)
    return [step for step in every if of.is_due(step)], [step for step in every if of.is_kept(step)]


@pytest.mark.parametrize(
    ("options", "due", "kept"),
    [
        ({"checkpoint_every": 0}, [20], []),
        ({"checkpoint_every": 8}, [8, 16, 20], []),
        ({"checkpoint_every": 8, "keep_every": 6}, [6, 8, 12, 16, 18, 20], [6, 12, 18]),
        ({"checkpoint_every": 0, "checkpoint_tokens": (1, 30, 31, 200)}, [1, 3, 4, 20], [1, 3, 4, 20]),
        ({"checkpoint_every": 0, "n_checkpoints": 3}, [5, 10, 15, 20], [5, 10, 15]),
    ],
)
def test_what_is_due_and_what_is_kept(options: dict[str, object], due: list[int], kept: list[int]) -> None:
    assert steps(plan(20, **options)) == (due, kept)


def test_more_checkpoints_than_steps_are_one_a_step() -> None:
    assert steps(plan(3, checkpoint_every=0, n_checkpoints=50)) == ([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_tokens": (10, 201)}, "checkpoint_tokens has 201, the run ends after 200"),
        ({"checkpoint_tokens": (0,)}, "at least 1"),
        ({"checkpoint_tokens": (5,), "n_checkpoints": 2}, "leave out one"),
        ({"n_checkpoints": -1}, "not be negative"),
        ({"keep_best": "heldout/l0", "eval_every": 5}, "known: heldout/fve"),
        ({"keep_best": "heldout/fve"}, "set eval_every"),
    ],
)
def test_what_cannot_be_kept_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(20, **options)


def test_the_better_figure_is_the_higher_or_the_lower_one() -> None:
    assert is_better("heldout/fve", 0.5, 0.4) and not is_better("heldout/fve", 0.4, 0.4)
    assert is_better("heldout/kl/base", 0.4, 0.5) and not is_better("heldout/kl", 0.5, 0.4)
    assert is_better("heldout/kl", 9.0, None)
    assert not is_better("heldout/kl", float("nan"), None) and not is_better("heldout/fve", float("nan"), 0.1)
