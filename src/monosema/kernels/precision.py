"""Products in low precision under ``torch.autocast``: operands are cast, sums are returned in float32.

Master weights, losses and what is added up over products stay float32. A float16 operand is scaled by a power of two
first, so that gradients (about 1/B of an activation) do not underflow; bfloat16 has float32's range and needs none.
"""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The type that products with ``tensor`` run in; None outside ``torch.autocast`` and for what is not float32."""
    if tensor.dtype != torch.float32 or not torch.is_autocast_enabled(tensor.device.type):
        return None
    return torch.get_autocast_dtype(tensor.device.type)


def lowered(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """``tensor`` in ``dtype``, and what a product with it must be multiplied by (a power of two)."""
    if dtype != torch.float16:
        return tensor.to(dtype), 1.0
    largest = tensor.detach().abs().amax() if tensor.numel() > 0 else tensor.new_zeros(())
    exponent = torch.frexp(torch.where(torch.isfinite(largest), largest, 1)).exponent  # |tensor| < 2^exponent
    return torch.ldexp(tensor, -exponent).to(dtype), torch.ldexp(torch.ones_like(largest), exponent)


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, by ``torch.autocast`` in low precision; float32 of float32."""
    dtype = autocast_dtype(left)
    return left @ right if dtype is None else product_in(left, right, dtype)


def product_in(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left @ right`` with operands of ``dtype``, in float32."""
    (a, a_factor), (b, b_factor) = lowered(left, dtype), lowered(right, dtype)
    return (a @ b).float() * (a_factor * b_factor)
