"""What every metric asks of its inputs, and the float64 they are summed in."""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.core.errors import DataError, ShapeError
from monosema.core.finite import all_finite


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` in float64, on its own device or, where that has no float64 (Apple GPUs), on the CPU."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise ``DataError`` naming ``name`` and the first bad entry where ``tensor`` holds NaN or infinities."""
    if all_finite(tensor):
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    first = tuple(bad[0].tolist())
    value = tensor[first].item()
    raise DataError(
        f"{name} must be finite, but {len(bad)} of {tensor.numel()} values are not; the first is {value} at index "
        f"{list(first)}. Look for overflow in float16, a diverged run, or damaged weights"
    )


def require_same_shape(x: Tensor, x_hat: Tensor) -> None:
    """Raise ``ShapeError`` unless both are ``[..., d]`` of one shape."""
    if x.shape != x_hat.shape or x.dim() == 0:
        raise ShapeError(
            f"x and its reconstruction must have one shape [..., d], got {list(x.shape)} and {list(x_hat.shape)}"
        )
