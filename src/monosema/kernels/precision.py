"""Products in low precision under ``torch.autocast``: operands are cast, sums are returned in float32.

Master weights, losses and what is added up over products stay float32. A float16 operand is scaled by a power of two
first, so that gradients (about 1/B of an activation) do not underflow; bfloat16 has float32's range and needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_shadows: ContextVar[Shadows | None] = ContextVar("shadows", default=None)


class Shadows:
    """Copies of weights in low precision, made once for each use of the weights.

    Within ``in_use`` the products of this module take them in place of casts of their own; weights may not change
    there. Who writes a copy together with its weight says so by ``renew``, and the next use need not make it.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._versions: dict[int, int] = {}
        """Of weights whose copies are theirs."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        token = _shadows.set(self)
        try:
            yield
        finally:
            _shadows.reset(token)
            self._versions.clear()  # torch's fused optimisers change weights without counting it

    def of(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """``weight`` in ``dtype``."""
        known = self._copies.get((id(weight), dtype))
        if known is None or known[1].shape != weight.shape:
            known = weight, weight.detach().to(dtype)
            self._copies[id(weight), dtype] = known
        elif self._versions.get(id(weight)) != weight._version:
            known[1].copy_(weight.detach())
        self._versions[id(weight)] = weight._version
        return known[1]

    def held(self, weight: Tensor) -> Tensor | None:
        """The copy of ``weight`` that there is, of whatever age; for who will write it and ``renew`` it."""
        return next((copy for other, copy in self._copies.values() if other is weight), None)

    def renew(self, weight: Tensor) -> None:
        """The copy of ``weight`` was written together with it."""
        self._versions[id(weight)] = weight._version


def shadow(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` in ``dtype`` where that is bfloat16, for the products below; float16 needs a factor as well."""
    if dtype != torch.bfloat16:
        return weight
    shadows = _shadows.get()
    return weight.to(dtype) if shadows is None or not weight.requires_grad else shadows.of(weight, dtype)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The type that products with ``tensor`` run in; None outside ``torch.autocast`` and for what is not float32."""
    if tensor.dtype != torch.float32 or not torch.is_autocast_enabled(tensor.device.type):
        return None
    return torch.get_autocast_dtype(tensor.device.type)


def lowered(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """``tensor`` in ``dtype``, and what a product with it must be multiplied by (a power of two)."""
    if dtype != torch.float16:
        return shadow(tensor, dtype), 1.0
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
