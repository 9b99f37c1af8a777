"""What a step holds, counted by hand."""

import pytest
import torch

import monosema as ms
from monosema.core.memory import peak_memory, readable_bytes
from monosema.training.memory import ENTRY_BYTES


def trainer(activation: object, batch_size: int = 100, **options: object) -> ms.Trainer:
    coder = ms.SAE(d_in=8, d_sae=640, activation=activation)
    return ms.Trainer(coder, ms.TrainingConfig(tokens=1_000, **options), batch_size)


def test_a_topk_step_by_hand() -> None:
    memory = trainer(ms.TopK(k=4), revive=None).memory()
    n_parameters = 2 * 8 * 640 + 640 + 8
    assert memory.weights == memory.gradients == 4 * n_parameters
    assert memory.moments == 8 * n_parameters
    assert memory.pre_activations == 4 * 100 * 640
    moments_and_statistics = memory.moments + 25 * 640
    assert memory.snapshot == 4 * n_parameters + moments_and_statistics + 3 * 4 * n_parameters
    assert trainer(ms.TopK(k=4), background_checkpoints=False).memory().snapshot == 3 * 4 * n_parameters
    rows, outputs, mask = 2 * 100 * 16 * 4, 4 * 100 * 8 * 4, 100 * 640
    assert memory.step == rows + outputs + mask + 400 * ENTRY_BYTES
    assert (memory.kept, memory.passing) == (
        memory.moments + memory.pre_activations,
        memory.gradients + memory.step,
    )


def test_learned_density_counts_from_where_it_starts() -> None:
    wide = trainer(ms.JumpReLU(), sparsity=ms.L0(target_l0=8), revive=None).memory()
    narrow = trainer(ms.JumpReLU(), sparsity=ms.L0(target_l0=4), revive=None).memory()
    assert wide.step - narrow.step == 6 * 4 * 100 * ENTRY_BYTES


def test_gradient_accumulation_divides_the_pre_activations() -> None:
    whole, parts = (trainer(ms.TopK(k=4), gradient_accumulation=n).memory() for n in (1, 3))
    assert parts.pre_activations == 4 * 34 * 640 < whole.pre_activations


@pytest.mark.parametrize("revive", [None, ms.AuxK(), ms.PreActivationLoss()])
@pytest.mark.parametrize("levels", [None, ms.Matryoshka(widths=(64, 640))])
def test_every_policy_and_levels_are_counted(revive: object, levels: object) -> None:
    assert trainer(ms.BatchTopK(k=4), revive=revive, levels=levels).memory().passing > 0


def test_a_stack_keeps_the_entries_of_all_its_parts() -> None:
    one, two = (
        ms.Trainer(ms.CLT([4] * n, [4] * n, 640, activation=ms.TopK(k=4)), ms.TrainingConfig(tokens=1_000), 100)
        for n in (1, 2)
    )
    assert two.memory().pre_activations == 2 * one.memory().pre_activations
    rows = 2 * 100 * 8 * 4
    assert two.memory().step - rows > one.memory().step - rows / 2 + 400 * ENTRY_BYTES - 1


def test_the_peak_of_this_process_is_at_least_what_it_holds() -> None:
    block = torch.ones(2**22)
    peak = peak_memory(torch.device("cpu"))
    assert peak is None or peak > block.numel() * 4


def test_bytes_for_people() -> None:
    assert readable_bytes(1) == "1 MiB"
    assert readable_bytes(3 * 2**29) == "1.5 GiB"
