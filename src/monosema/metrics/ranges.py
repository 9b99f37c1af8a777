"""The values that a figure can have, by its name in a report: its interval never reaches beyond them."""

from __future__ import annotations

import math
from collections.abc import Mapping

Range = tuple[float, float]
"""The least and the greatest value."""

ANY: Range = (-math.inf, math.inf)
_AT_LEAST_0: Range = (0.0, math.inf)
_AT_MOST_1: Range = (-math.inf, 1.0)

RANGES: Mapping[str, Range] = {
    "fve": _AT_MOST_1,
    "fve_per_token_mean": _AT_MOST_1,
    "mse": _AT_LEAST_0,
    "cosine": (-1.0, 1.0),
    "norm_ratio": _AT_LEAST_0,
    "relative_reconstruction_bias": ANY,
    "l0": _AT_LEAST_0,
    "l1": _AT_LEAST_0,
    "ce": _AT_LEAST_0,
    "ce_clean": _AT_LEAST_0,
    "ce_spliced": _AT_LEAST_0,
    "ce_ablated": _AT_LEAST_0,
    "ce_loss_score": ANY,  # above 1 where the spliced model predicts better than the clean one
    "kl": _AT_LEAST_0,
    "kl_ablated": _AT_LEAST_0,
    "kl_score": _AT_MOST_1,
    "top1_agreement": (0.0, 1.0),
    "pattern_kl": _AT_LEAST_0,
    "pattern_kl_ablated": _AT_LEAST_0,
    "pattern_kl_score": _AT_MOST_1,
}
"""Of every figure with an interval."""


def range_of(name: str) -> Range:
    """The range of a figure, or of ``ablations/NAME/FIGURE``."""
    return RANGES[name.rsplit("/", 1)[-1]]
