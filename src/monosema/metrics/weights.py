"""What a dictionary's weights say without any text: lengths of its encoder rows, and how alike its latents are.

``W_enc [d_in, d_sae]`` and ``W_dec [d_sae, d_out]`` as coders have them. Results are ``[d_sae]`` float64 on the CPU.
Lengths are float64, products of unit rows float32. A zero row has no direction: its cosine with anything is 0, as in
``recovery.max_cosine``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monosema.core.errors import ShapeError
from monosema.metrics.checks import require_finite, wide

_CHUNK_ELEMENTS = {"cpu": 2**22}
"""Cosines held at a time, by device (2**26 where not named)."""


def encoder_norms(W_enc: Tensor) -> Tensor:
    """``||W_enc[:, i]||`` of each latent, for ``W_enc [d_in, d_sae]``."""
    _require_matrix("W_enc", W_enc)
    return _norms(W_enc.detach().T).cpu()


def encoder_decoder_cosine(W_enc: Tensor, W_dec: Tensor) -> Tensor:
    """``cos(W_enc[:, i], W_dec[i])`` of each latent, in [-1, 1]: 1 where it is written as it is read.

    Raises ``ShapeError`` unless ``W_enc`` is ``[d, d_sae]`` and ``W_dec`` ``[d_sae, d]``: the two directions of a coder
    that writes another site than it reads have nothing to do with each other, even where the widths agree.
    """
    if W_enc.dim() != 2 or W_enc.T.shape != W_dec.shape:
        raise ShapeError(
            "the cosine of encoder and decoder needs W_enc [d, d_sae] and W_dec [d_sae, d] of one d, got "
            f"{list(W_enc.shape)} and {list(W_dec.shape)}"
        )
    _require_matrix("W_enc", W_enc)
    _require_matrix("W_dec", W_dec)
    return (_unit_rows(W_enc.detach().T) * _unit_rows(W_dec.detach())).sum(1, dtype=torch.float64).clamp_(-1, 1).cpu()


def max_cosine_to_others(W: Tensor) -> Tensor:
    """For each row of ``W [d_sae, d]`` its largest cosine with another row: ``max_{j != i} cos(W_i, W_j)``.

    In [-1, 1]; high values are near-copies. Pass ``W_dec``, or ``W_enc.T``. NaN where there is one row only. The
    cosines are made a block of rows at a time, each pair once; ``[d_sae, d_sae]`` numbers never exist together.
    """
    _require_matrix("W", W)
    rows = _unit_rows(W.detach())
    largest = rows.new_full((len(rows),), -math.inf)
    step = max(1, _CHUNK_ELEMENTS.get(rows.device.type, 2**26) // max(1, len(rows)))
    for start in range(0, len(rows), step):
        block = rows[start : start + step] @ rows[start:].T  # earlier rows have met these already
        block.diagonal().fill_(-math.inf)
        ours, later = largest[start : start + step], largest[start:]
        torch.maximum(later, block.amax(0), out=later)
        torch.maximum(ours, block.amax(1), out=ours)
    return wide(largest.clamp_(max=1)).masked_fill_(largest == -math.inf, math.nan).clamp_(min=-1).cpu()


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32 if rows.device.type == "mps" else torch.float64)


def _unit_rows(rows: Tensor) -> Tensor:
    """float32 rows of length one; a zero row stays zero."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    norms = _norms(rows).to(dtype)
    return (rows.to(dtype) / torch.where(norms > 0, norms, 1.0).unsqueeze(1)).to(torch.float32)


def _require_matrix(name: str, weights: Tensor) -> None:
    if weights.dim() != 2:
        raise ShapeError(f"{name} must be a matrix, got {list(weights.shape)}")
    require_finite(name, weights)
