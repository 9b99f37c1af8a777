"""The threshold that TopK, AbsTopK and BatchTopK infer with, set after the last step by the final weights.

While training, the threshold is a running mean over batches. It lags behind the weights, and after few steps it is far
from what k latents a token need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from monosema.coders import SparseCoder, TrainableDictionary
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.core.logs import get_logger
from monosema.kernels.select import select_batch_top_k_of_parts

logger = get_logger("monosema.training")

CALIBRATION_ROWS = 16_384
"""Training rows that the threshold is computed from, at most."""

_AT_A_TIME = 2**24
"""Scores."""


@torch.no_grad()
def calibrate_(coder: TrainableDictionary, x_BI: Tensor) -> None:
    """Set each threshold in place so that the scaled rows ``x [B, d_in]`` have k active latents a token on average.

    It is the ``round(k B)``-th largest positive score of all rows. A latent is active above it, so the rows have k less
    one entry. 0 where there are fewer positive scores. In a stack each layer has its own. Coders without a threshold
    stay as they are.
    """
    for part in coder.parts:
        own = part.coder.activation
        if not isinstance(own, FixedCountActivation) or own.config.inference != "threshold":
            continue
        threshold, before = _threshold(part.coder, own, x_BI[:, part.read]), own.threshold
        if math.isfinite(threshold):
            own.set_threshold(threshold)
            logger.info("%sthreshold %s, calibrated on %d rows: %.6g", part.prefix, before, len(x_BI), threshold)


def _threshold(coder: SparseCoder, own: FixedCountActivation, x_BI: Tensor) -> float:
    n_rows = max(1, _AT_A_TIME // coder.d_sae)

    def parts() -> Iterator[Tensor]:
        return (coder.pre_activations(rows, scaled=True) for rows in x_BI.split(n_rows))

    n_entries = min(round(own.config.k * len(x_BI)), len(x_BI) * coder.d_sae)
    shape, weights = (len(x_BI), coder.d_sae), coder.selection_weights()
    return float(select_batch_top_k_of_parts(parts, shape, n_entries, None, weights, signed=own.signed)[1])
