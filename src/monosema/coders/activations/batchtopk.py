"""BatchTopK: a fixed number of latents per token on average over the batch."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection
from monosema.coders.config import BatchTopK
from monosema.core.errors import ConfigError
from monosema.kernels import Latents, select_above, select_batch_top_k


@final
class BatchTopKActivation(Activation):
    """Training: ``f = pre`` on the ``round(k · B)`` largest positive pre-activations of the batch.

    Inference: ``f = pre · 1[pre > θ]`` with one threshold for all latents, the running mean over batches of the
    smallest value selected, bias-corrected as Adam's moments are: ``θ_t = m_t / (1 - (1-r)^t)``,
    ``m_t = (1-r) m_{t-1} + r · least_t``. Before the first step the training rule is used.
    Source: Bussmann et al. 2024, arXiv 2412.06410, section 3.
    """

    threshold_sum: Tensor
    threshold_weight: Tensor

    def __init__(self, config: BatchTopK, d_sae: int):
        super().__init__()
        self.k = config.k
        self.rate = config.threshold_rate
        self.register_buffer("threshold_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("threshold_weight", torch.zeros((), dtype=torch.float64))
        self._last_least: float | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> BatchTopKActivation:
        device = fn(self.threshold_sum.float()).device
        # never in the coder's dtype: in bfloat16 a running mean stands still (Apple's devices have no float64)
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.threshold_sum = self.threshold_sum.to(device, exact)
        self.threshold_weight = self.threshold_weight.to(device, exact)
        return self

    @property
    def threshold(self) -> float | None:
        """θ, the threshold at inference; None before the first training step."""
        weight = float(self.threshold_weight)
        return float(self.threshold_sum) / weight if weight > 0 else None

    def set_threshold(self, threshold: float) -> None:
        """Fix the threshold at inference (what a saved file or a calibration says)."""
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ConfigError(f"BatchTopK: the threshold must be finite and not negative, got {threshold}")
        self.threshold_sum.fill_(threshold)
        self.threshold_weight.fill_(1.0)

    def select(self, pre_BF: Tensor) -> Selection:
        n_entries = min(round(self.k * pre_BF.shape[0]), pre_BF.numel())
        guess = None if self._last_least is None else 0.9 * self._last_least
        latents, least = select_batch_top_k(pre_BF, n_entries, guess)
        self._last_least = float(least)  # speeds the next search up; never changes a result
        return Selection(latents, least=least)

    def infer(self, pre_BF: Tensor) -> Latents:
        threshold = self.threshold
        return self.select(pre_BF).latents if threshold is None else select_above(pre_BF, threshold)

    def infer_dense(self, pre_BF: Tensor) -> Tensor:
        return pre_BF * (self.infer(pre_BF.detach()).to_dense() > 0)

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        return ActivationGradients((selection.latents.with_values(gradients.latents),))

    def scale_latents_(self, factors_F: Tensor) -> None:
        if not torch.allclose(factors_F, factors_F[0].expand_as(factors_F), rtol=1e-4):
            raise ConfigError(
                "folding unequal decoder norms would change which latents BatchTopK selects; "
                "train with decoder='unit_norm', or leave the norms unfolded"
            )
        self.threshold_sum.mul_(factors_F.double().mean())

    def update_(self, selection: Selection, ok: Tensor) -> None:
        assert selection.least is not None
        rate = self.rate * ok.to(self.threshold_sum.dtype)
        least = torch.where(ok, selection.least, 0.0).to(rate.dtype)
        self.threshold_sum.mul_(1 - rate).add_(rate * least)
        self.threshold_weight.mul_(1 - rate).add_(rate)
