"""What each run is asked to predict."""

from __future__ import annotations

import pytest
import torch

from monosema.evaluation.tasks import choose_masked, masked_token_task, next_token_task


def test_next_token_task_by_hand():
    contexts = torch.tensor([[0, 5, 6, 0, 7, 8], [0, 9, 9, 9, 0, 4]])
    task = next_token_task(contexts, contexts == 0)
    # 5 -> 6, 7 -> 8, 9 -> 9 twice; never from or to 0, never across contexts
    assert task.positions.tolist() == [1, 4, 7, 8]
    assert task.targets.tolist() == [6, 8, 9, 9]
    assert torch.equal(task.tokens, contexts)


def test_without_special_positions_all_but_the_last_count():
    contexts = torch.tensor([[3, 5, 6], [7, 8, 9]])
    task = next_token_task(contexts, torch.zeros_like(contexts, dtype=torch.bool))
    assert task.positions.tolist() == [0, 1, 3, 4]
    assert task.targets.tolist() == [5, 6, 8, 9]


def test_masked_positions_are_text_and_depend_on_the_seed_only():
    special = torch.zeros(200, 50, dtype=torch.bool)
    special[:, 0] = True
    random_state = torch.get_rng_state()
    masked = choose_masked(special, seed=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not masked[:, 0].any()
    assert masked[:, 1:].double().mean().item() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(masked, choose_masked(special, seed=0))
    assert not torch.equal(masked, choose_masked(special, seed=1))


def test_masked_token_task_by_hand():
    contexts = torch.tensor([[1, 5, 6], [7, 8, 9]])
    masked = torch.tensor([[False, True, False], [False, False, True]])
    task = masked_token_task(contexts, masked, mask_token_id=3)
    assert task.tokens.tolist() == [[1, 3, 6], [7, 8, 3]]
    assert task.positions.tolist() == [1, 5]
    assert task.targets.tolist() == [5, 9]
