"""Scores made of a few numbers, without torch."""

from __future__ import annotations

import math


def ratio(numerator: float, denominator: float) -> float:
    """``numerator / denominator``, NaN where the denominator is zero."""
    return numerator / denominator if denominator != 0 else math.nan


def ce_loss_score(ce_clean: float, ce_spliced: float, ce_ablated: float) -> float:
    """``(CE_ablated - CE_spliced) / (CE_ablated - CE_clean)``: the share of the loss lost to ablation that is kept.

    1 where splicing costs nothing, 0 where it costs as much as ablation; below 0 is worse than ablation, and above 1
    is better than the clean model. NaN where ablation leaves the loss as it is. "Loss recovered" in Bricken et al.
    2023 and SAEBench.
    """
    return ratio(ce_ablated - ce_spliced, ce_ablated - ce_clean)


def kl_score(kl: float, kl_ablated: float) -> float:
    """``(KL_ablated - KL) / KL_ablated``, both against the clean run: 1 where splicing changes no prediction.

    In (-inf, 1]; NaN where ablation changes no prediction.
    """
    return ratio(kl_ablated - kl, kl_ablated)
