"""From sums over predictions to figures, by hand."""

from __future__ import annotations

import math

import pytest
import torch

import monosema.metrics
from monosema.evaluation.losses import few_documents, losses_of
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
    # without one group the clean loss is 3 or 1: 2 -+ t sqrt(1/2 * 2), t of one degree of freedom; no loss is below 0
    assert found.intervals["ce_clean"] == (0, pytest.approx(2 + 12.7062047, rel=1e-6))
    assert found.intervals["ce_loss_score"] == (0.8, 0.8)  # the same without either


def test_the_interval_of_a_share_stays_between_0_and_1():
    ones = torch.ones(3, dtype=torch.float64)
    agreed = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    sums = GroupSums(torch.stack([ones, ones * torch.tensor([1.0, 2.0, 3.0]), ones, agreed], 1))
    found = losses_of({"clean": sums, "spliced": sums, "zero": sums}, ["zero"])
    assert found.top1_agreement == pytest.approx(5 / 6)
    assert found.intervals["top1_agreement"][1] == 1
    assert found.intervals["top1_agreement"][0] == pytest.approx(5 / 6 - 4.3026527 / 6, rel=1e-6)  # s = 1 / sqrt(12)
    assert found.intervals["ablations/zero/top1_agreement"][1] == 1


@pytest.mark.parametrize("n", [0, 1, 2, 9, 10, 256])
def test_few_documents_are_noted(n: int):
    notes = few_documents(n)
    assert len(notes) == (0 < n < 10)
    assert all(("no intervals" in note) == (n == 1) for note in notes)


def test_of_no_predictions_nothing_is_defined():
    empty = {name: GroupSums.empty(2, 4) for name in ("clean", "spliced", "zero")}
    found = losses_of(empty, ["zero"])
    assert all(math.isnan(each) for each in (found.ce_clean, found.ce_loss_score, found.kl, found.top1_agreement))
    assert (found.n_predicted_tokens, found.intervals) == (0, {})


def test_every_public_metric_is_there():
    assert all(hasattr(monosema.metrics, name) for name in monosema.metrics.__all__)
