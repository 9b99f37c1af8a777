"""What each latent does, by hand."""

from __future__ import annotations

import math

import torch

from monosema.kernels.latents import latents_from_dense
from monosema.metrics import LatentSums

DENSE = torch.tensor([[0.0, 2.0, 0.0], [1.0, 4.0, 0.0], [0.0, -6.0, 0.0], [3.0, 0.0, 0.0]])


def test_by_hand():
    found = LatentSums.of(latents_from_dense(DENSE), torch.tensor([5, 5, 6, 7]))
    assert found.firings.tolist() == [2, 3, 0]
    assert found.total.tolist() == [4, 0, 0]
    assert found.largest.tolist() == [3, 6, 0]
    assert found.contexts.tolist() == [2, 2, 0]
    assert found.mean_value.tolist()[:2] == [2, 0]
    assert found.consistent_activation.tolist()[:2] == [1, 1.5]
    assert math.isnan(found.mean_value[2]) and math.isnan(found.consistent_activation[2])


def test_whole_contexts_add():
    contexts = torch.tensor([5, 5, 6, 7])
    parts = [LatentSums.of(latents_from_dense(DENSE[at]), contexts[at]) for at in (slice(0, 2), slice(2, 4))]
    whole = LatentSums.of(latents_from_dense(DENSE), contexts)
    total = LatentSums.empty(3) + parts[0] + parts[1]
    for name in ("firings", "total", "largest", "contexts"):
        assert torch.equal(getattr(total, name), getattr(whole, name))


def test_without_contexts_there_is_no_consistency_and_a_stored_zero_is_no_firing():
    latents = latents_from_dense(DENSE)
    stored = latents.with_values(torch.where(latents.values == 2, 0.0, latents.values))
    found = LatentSums.of(stored)
    assert found.firings.tolist() == [2, 2, 0]
    assert found.consistent_activation.isnan().all()
