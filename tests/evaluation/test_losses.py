"""From sums over predictions to figures, by hand."""

from __future__ import annotations

import math

import pytest
import torch

import monosema.metrics
from monosema.evaluation.losses import losses_of
from monosema.metrics import GroupSums


def runs(*, n: int = 2) -> dict[str, GroupSums]:
    """Two groups of ``n`` predictions: cross-entropies 1 and 3 clean, 2 and 4 spliced, 6 and 8 ablated."""
    ones = torch.full((2,), float(n), dtype=torch.float64)

    def sums(ce: tuple[float, float], kl: float, agreed: float) -> GroupSums:
        return GroupSums(torch.stack([ones, ones * torch.tensor(ce), ones * kl, ones * agreed], 1))

    return {"clean": sums((1, 3), 0, 1), "spliced": sums((2, 4), 0.5, 0.75), "mean": sums((6, 8), 4, 0.25)}


def test_means_and_scores_by_hand():
    found = losses_of(runs(), ["mean"])
    assert (found.ce_clean, found.ce_spliced, found.ce_ablated, found.n_predicted_tokens) == (2, 3, 7, 4)
    assert (found.ce_loss_score, found.kl, found.kl_ablated, found.kl_score) == (0.8, 0.5, 4, 0.875)
    assert (found.top1_agreement, found.ablations["mean"].top1_agreement) == (0.75, 0.25)
    assert found.ablations["mean"].ce_loss_score == found.ce_loss_score
    # without one group the clean loss is 3 or 1: 2 -+ 1.96 sqrt(1/2 * 2), as s / sqrt(2) of 1 and 3 is 1
    assert found.intervals["ce_clean"] == (pytest.approx(2 - 1.959964, rel=1e-6), pytest.approx(2 + 1.959964, rel=1e-6))
    assert found.intervals["ce_loss_score"] == (0.8, 0.8)  # the same without either


def test_of_no_predictions_nothing_is_defined():
    empty = {name: GroupSums.empty(2, 4) for name in ("clean", "spliced", "zero")}
    found = losses_of(empty, ["zero"])
    assert all(math.isnan(each) for each in (found.ce_clean, found.ce_loss_score, found.kl, found.top1_agreement))
    assert (found.n_predicted_tokens, found.intervals) == (0, {})


def test_every_public_metric_is_there():
    assert all(hasattr(monosema.metrics, name) for name in monosema.metrics.__all__)
