"""How much of a known dictionary was learned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosema.core.errors import ShapeError
from monosema.metrics.checks import require_finite


def max_cosine(learned: Tensor, truth: Tensor) -> Tensor:
    """For each true direction, its largest cosine with a learned one: ``max_j cos(d_i, w_j)`` ``[n_features]``.

    ``learned [n, d]`` (a decoder's rows) and ``truth [n_features, d]`` need not be unit; a zero row has cosine 0 with
    everything. Signs count: a direction learned backwards is not the direction.
    """
    if learned.dim() != 2 or truth.dim() != 2 or learned.shape[1] != truth.shape[1] or 0 in learned.shape:
        raise ShapeError(f"learned and truth must be [n, d] of one d, got {list(learned.shape)}, {list(truth.shape)}")
    require_finite("learned", learned)
    require_finite("truth", truth)
    cosines = normalize(truth.double(), dim=1) @ normalize(learned.double(), dim=1).T
    return cosines.amax(dim=1)


def mean_max_cosine(learned: Tensor, truth: Tensor) -> float:
    """Mean over true directions of ``max_cosine`` (Sharkey et al. 2022, "MMCS")."""
    return float(max_cosine(learned, truth).mean())


def recovered_fraction(learned: Tensor, truth: Tensor, above: float = 0.9) -> float:
    """Share of true directions whose ``max_cosine`` exceeds ``above``."""
    return float((max_cosine(learned, truth) > above).to(torch.float64).mean())
