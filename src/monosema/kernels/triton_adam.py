"""Adam and what surrounds it as one Triton program for each row of a weight matrix, for CUDA.

A row's gradient, weights and moments are read once: projection, update, renormalisation and the copy in low precision
need no pass of their own. Nothing waits for the host; where ``ok`` is False nothing is written. Twin: torch's Adam with
``project`` and ``renormalise`` before and after (``training.optimizer``).

``TRITON_INTERPRET=1`` runs the same program on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDEST = 4096
"""Columns that a program holds at once; wider rows are gone through in pieces."""


@dataclass(frozen=True)
class Moments:
    """What Adam remembers of a matrix."""

    first: Tensor
    """[R, D] mean of gradients."""
    second: Tensor
    """[R, D] mean of their squares."""
    step: Tensor
    """0-d float32: updates so far, this one included."""


def update_rows_(
    weight_RD: Tensor,
    gradient_RD: Tensor,
    moments: Moments,
    *,
    lr: float,
    betas: tuple[float, float],
    epsilon: float,
    ok: Tensor,
    is_direction: bool,
    shadow_RD: Tensor | None,
) -> None:
    """One step of Adam on ``weight_RD`` (float32), in place.

    ``is_direction``: rows have norm one and keep it; the part of the gradient along a row is left out first, and the
    row is brought back to norm one after. ``shadow_RD`` receives the new weights in its own type.
    """
    n_rows, width = weight_RD.shape
    columns = min(_WIDEST, triton.next_power_of_2(max(16, width)))
    if weight_RD.numel() == 0:
        return
    _update_rows[(n_rows,)](
        weight_RD,
        gradient_RD.contiguous(),
        moments.first,
        moments.second,
        weight_RD if shadow_RD is None else shadow_RD,
        moments.step,
        ok.to(torch.int32).reshape(1),
        width,
        lr,
        1 - betas[0],
        1 - betas[1],
        math.log(betas[0]) if betas[0] > 0 else -1e4,
        math.log(betas[1]) if betas[1] > 0 else -1e4,
        epsilon,
        COLUMNS=columns,
        IS_DIRECTION=is_direction,
        HAS_SHADOW=shadow_RD is not None,
        num_warps=4 if columns <= 1024 else 8,
    )


@triton.jit
def _update_rows(
    weight, gradient, first, second, shadow, step, ok, width,
    lr, new1, new2, log_beta1, log_beta2, epsilon,
    COLUMNS: tl.constexpr, IS_DIRECTION: tl.constexpr, HAS_SHADOW: tl.constexpr,
):  # fmt: skip
    if tl.load(ok) != 0:
        row = tl.program_id(0).to(tl.int64) * width
        count = tl.load(step).to(tl.float64)
        bias1 = (1 - tl.exp(count * log_beta1)).to(tl.float32)
        bias2 = tl.sqrt(1 - tl.exp(count * log_beta2)).to(tl.float32)
        along = tl.zeros([COLUMNS], tl.float32)
        if IS_DIRECTION:
            for column in range(0, width, COLUMNS):
                place = column + tl.arange(0, COLUMNS)
                inside = place < width
                of_weight = tl.load(weight + row + place, mask=inside, other=0)
                along += of_weight * tl.load(gradient + row + place, mask=inside, other=0)
        share = tl.sum(along)
        squares = tl.zeros([COLUMNS], tl.float32)
        for column in range(0, width, COLUMNS):
            place = column + tl.arange(0, COLUMNS)
            inside = place < width
            old = tl.load(weight + row + place, mask=inside, other=0)
            slope = tl.load(gradient + row + place, mask=inside, other=0)
            if IS_DIRECTION:
                slope -= share * old
            mean = tl.load(first + row + place, mask=inside, other=0)
            mean += new1 * (slope - mean)
            square = tl.load(second + row + place, mask=inside, other=0)
            square += new2 * (slope * slope - square)
            new = old - lr * (mean / bias1) / (tl.sqrt(square) / bias2 + epsilon)
            tl.store(first + row + place, mean, mask=inside)
            tl.store(second + row + place, square, mask=inside)
            tl.store(weight + row + place, new, mask=inside)
            if HAS_SHADOW and not IS_DIRECTION:
                tl.store(shadow + row + place, new.to(shadow.dtype.element_ty), mask=inside)
            squares += tl.where(inside, new * new, 0)
        if IS_DIRECTION:
            norm = tl.maximum(tl.sqrt(tl.sum(squares)), 1e-8)
            for column in range(0, width, COLUMNS):
                place = column + tl.arange(0, COLUMNS)
                inside = place < width
                new = tl.load(weight + row + place, mask=inside, other=0) / norm
                tl.store(weight + row + place, new, mask=inside)
                if HAS_SHADOW:
                    tl.store(shadow + row + place, new.to(shadow.dtype.element_ty), mask=inside)
