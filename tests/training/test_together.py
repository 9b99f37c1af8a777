"""Coders that share one encoder product end where they end alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from training_tiny import batches

import monosema as ms
from monosema.training import Trainer, TrainingConfig, together
from monosema.training.loop import FitRun, fit_all

WIDTH, ROWS, STEPS = 12, 40, 8
ACTIVATIONS = (ms.TopK(k=4), ms.TopK(k=7), ms.BatchTopK(k=4), ms.JumpReLU(), ms.ReLU(), ms.Gated(), ms.Gated())


def trainers(dtype: str = "float64", latents: Sequence[int] = (48,), **options: Any) -> list[Trainer]:
    config = TrainingConfig(tokens=STEPS * ROWS, lr=0.01, revive=ms.AuxK(dead_after_tokens=2 * ROWS), **options)
    return [
        Trainer(ms.SAE(WIDTH, width, activation=activation, seed=number, dtype=dtype), config, ROWS)
        for width in latents
        for number, activation in enumerate(ACTIVATIONS)
    ]


def run(made: list[Trainer], data: list[Tensor]) -> list[Tensor]:
    fit_all([FitRun(trainer, ()) for trainer in made], iter(data))
    return [parameter.detach() for trainer in made for parameter in trainer.coder.parameters()]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shares products as on a GPU; the sizes of the groups that did."""
    sizes: list[int] = []
    make = together._pre_activations

    def counted(members: Sequence[Trainer], inputs: Sequence[Tensor]) -> Tensor:
        sizes.append(len(members))
        return make(members, inputs)

    monkeypatch.setattr(together, "_is_worthwhile", lambda _: True)
    monkeypatch.setattr(together, "_pre_activations", counted)
    return sizes


def test_they_end_where_they_end_alone(shared: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(STEPS, width=WIDTH, rows=ROWS, dtype=torch.float64)
    ends = run(trainers(latents=(48, 32), pre_noise=0.01), data)
    assert shared == [5, 2, 5, 2] * STEPS  # those with an encoder bias and those without, of either width
    monkeypatch.setattr(together, "_is_worthwhile", lambda _: False)
    alone = run(trainers(latents=(48, 32), pre_noise=0.01), data)
    for one, other in zip(ends, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_group_holds_no_more_than_the_workspace(shared: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(together.WORKSPACE_BYTES, "gpu", 2 * ROWS * 48 * 8)
    data = batches(STEPS, width=WIDTH, rows=ROWS, dtype=torch.float64)
    run(trainers(), data)
    assert shared == [2, 2, 2] * STEPS  # five by two, two and one, which needs no group; and two


def test_low_precision_is_rescored_as_alone(shared: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(1, width=WIDTH, rows=ROWS, dtype=torch.float32)
    ends = run(trainers("float32", autocast="bfloat16"), data * STEPS)
    monkeypatch.setattr(together, "_is_worthwhile", lambda _: False)
    alone = run(trainers("float32", autocast="bfloat16"), data * STEPS)
    assert shared
    for one, other in zip(ends, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("options", [{"gradient_accumulation": 2}, {"compile": "default"}])
def test_what_needs_a_product_of_its_own_has_it(shared: list[int], options: dict[str, Any]) -> None:
    (made,) = [trainers(**options)]
    data = batches(1, width=WIDTH, rows=ROWS, dtype=torch.float64)
    rows = together.prepare_together(made, data * len(made))
    assert not shared and all(each.pre_BF is None for each in rows)
