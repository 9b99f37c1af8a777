"""The running threshold of activations that select a fixed number of latents."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from monosema.core.errors import ConfigError


@final
class RunningThreshold(nn.Module):
    """Mean over batches of the threshold that a selection amounts to, bias-corrected as Adam's moments are.

    ``θ_t = m_t / (1 - (1-r)^t)``, ``m_t = (1-r) m_{t-1} + r · least_t``. Source: Bussmann et al. 2024,
    arXiv 2412.06410, section 3 (there a plain mean).
    """

    total: Tensor
    weight: Tensor

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def _apply(self, fn: Any, recurse: bool = True) -> RunningThreshold:
        device = fn(self.total.float()).device
        # never in the coder's dtype: in bfloat16 a running mean stands still (Apple's devices have no float64)
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.total, self.weight = self.total.to(device, exact), self.weight.to(device, exact)
        return self

    @property
    def value(self) -> float | None:
        """θ; None before the first step."""
        weight = float(self.weight)
        return float(self.total) / weight if weight > 0 else None

    def set(self, threshold: float) -> None:
        """Fix θ (what a saved file or a calibration says)."""
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ConfigError(f"the threshold must be finite and not negative, got {threshold}")
        self.total.fill_(threshold)
        self.weight.fill_(1.0)

    def scale_(self, factor: Tensor) -> None:
        """Multiply θ by a 0-d factor."""
        self.total.mul_(factor.to(self.total.dtype))

    def update_(self, least: Tensor, ok: Tensor) -> None:
        """Take one batch into account in place; nothing changes where ``ok`` is False."""
        rate = self.rate * ok.to(self.total.dtype)
        least = torch.where(ok, least, 0.0).to(rate.dtype)
        self.total.mul_(1 - rate).add_(rate * least)
        self.weight.mul_(1 - rate).add_(rate)


def common_factor(factors_F: Tensor, name: str) -> Tensor:
    """The one factor (0-d) that all latents are scaled by; ``ConfigError`` where they differ."""
    if not torch.allclose(factors_F, factors_F[0].expand_as(factors_F), rtol=1e-4):
        raise ConfigError(
            f"folding unequal decoder norms would change which latents {name} selects; train with "
            "decoder='unit_norm', use weight_by_decoder_norm=True, or leave the norms unfolded"
        )
    return factors_F.double().mean()
