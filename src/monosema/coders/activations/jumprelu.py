"""JumpReLU: a learned threshold per latent."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection
from monosema.coders.config import JumpReLU
from monosema.kernels import Latents, latents_from_mask, select_above


@final
class JumpReLUActivation(Activation):
    """``f = pre · 1[pre > θ]``, θ ≥ 0 learned through straight-through estimates on a window of width ε.

    With K the rectangle of height 1 on (-1/2, 1/2) and g the gradient with respect to f or to ``s = 1[pre > θ]``:
    ``∂f/∂θ = -(θ/ε) K((pre - θ)/ε)``, ``∂s/∂θ = -(1/ε) K((pre - θ)/ε)``, ``∂f/∂pre = 1[pre > θ]``. Inactive entries
    near the threshold count as well. Source: Rajamanoharan et al. 2024, arXiv 2407.14435, equations 11 and 12.
    """

    def __init__(self, config: JumpReLU, d_sae: int):
        super().__init__()
        self.bandwidth = config.bandwidth
        self.threshold = nn.Parameter(torch.full((d_sae,), config.init_threshold))

    def select(self, pre_BF: Tensor) -> Selection:
        distance = pre_BF - self.threshold
        near = latents_from_mask(distance, distance.abs() < 0.5 * self.bandwidth)
        return Selection(self.infer(pre_BF), near=near)

    def infer(self, pre_BF: Tensor) -> Latents:
        return select_above(pre_BF, self.threshold)

    def infer_dense(self, pre_BF: Tensor) -> Tensor:
        return pre_BF * ((pre_BF > self.threshold) & (pre_BF > 0))

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        assert selection.near is not None and gradients.near is not None
        latent = selection.near.indices.long()
        through = gradients.near * self.threshold[latent]
        if gradients.near_step is not None:
            through = through + gradients.near_step
        threshold = torch.zeros_like(self.threshold).index_add_(0, latent, through).div_(-self.bandwidth)
        return ActivationGradients((selection.latents.with_values(gradients.latents),), {"threshold": threshold})

    def scale_latents_(self, factors_F: Tensor) -> None:
        self.threshold.mul_(factors_F)

    @torch.no_grad()
    def project_(self) -> None:
        self.threshold.clamp_(min=0)
