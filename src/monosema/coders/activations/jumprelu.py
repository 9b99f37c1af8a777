"""JumpReLU: a learned threshold per latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection, where_active
from monosema.coders.activations.configs import JumpReLU
from monosema.coders.activations.family import SavedRule
from monosema.coders.activations.windows import kernel_density, reach
from monosema.kernels import Latents, entries_above, select_above
from monosema.kernels.latents import positions

_START = 0.1
"""Of thresholds, where neither the config nor data say anything."""


@final
class JumpReLUActivation(Activation):
    """``f = pre · 1[pre > θ]``, θ ≥ 0 learned through straight-through estimates on a window of width ε.

    With K the kernel (``windows.kernel_density`` gives K/ε) and g the gradient with respect to f or to
    ``s = 1[pre > θ]``: ``∂f/∂θ = -(θ/ε) K((pre - θ)/ε)``, ``∂s/∂θ = -(1/ε) K((pre - θ)/ε)``,
    ``∂f/∂pre = 1[pre > θ]``. Inactive entries near the threshold count as well. Source: Rajamanoharan et al. 2024,
    arXiv 2407.14435, equations 11 and 12. With ``ste_to_input`` both estimates, negated, reach ``pre`` too
    (Anthropic, January 2025 update).
    """

    learns_threshold = True

    def __init__(self, config: JumpReLU, d_sae: int):
        super().__init__()
        self.config = config
        start = _START if config.init_threshold is None else config.init_threshold
        self.threshold = nn.Parameter(torch.full((d_sae,), start, dtype=torch.get_default_dtype()))

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        """One pass finds all that is above ``θ - reach``; what is active and what is near are chosen from it."""
        far = reach(self.config.bandwidth, self.config.kernel)
        rounding = 4 * torch.finfo(pre_BF.dtype).eps * (self.threshold + far)
        found = entries_above(pre_BF, self.threshold - far - rounding)
        threshold = self.threshold[found.indices]
        distance = found.values - threshold
        active = (found.values > threshold) & (found.values > 0)
        is_near = distance.abs() < far
        return Selection(
            found.where(active, found.values),
            near=found.where(is_near, distance),
            near_activations=torch.where(active, found.values, 0)[positions(is_near)],
        )

    def above(self, selection: Selection) -> Latents:
        latents = selection.latents
        return latents.with_values(latents.values - self.threshold[latents.indices])

    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        return select_above(pre_BF, self.threshold)

    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        return where_active((pre_BF > self.threshold) & (pre_BF > 0), pre_BF)

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        near = selection.near
        assert near is not None and gradients.near is not None
        latent = near.indices.long()
        through = gradients.near * self.threshold[latent]
        if gradients.near_step is not None:
            through = through + gradients.near_step
        through = through * kernel_density(near.values, self.config.bandwidth, self.config.kernel)
        threshold = torch.zeros_like(self.threshold).index_add_(0, latent, -through)
        pre = [selection.latents.with_values(gradients.latents)]
        if self.config.ste_to_input:
            pre.append(near.with_values(through))
        return ActivationGradients(tuple(pre), {"threshold": threshold})

    def scale_latents_(self, factors_F: Tensor) -> None:
        self.threshold.mul_(factors_F)

    def saved_rule(self, dtype: torch.dtype) -> SavedRule:
        return SavedRule(name="jumprelu", tensors={"threshold": self.threshold.detach()})

    def thresholds(self) -> Tensor:
        return self.threshold.detach()

    def threshold_gradients(self, gradient_F: Tensor) -> Mapping[str, Tensor]:
        return {"threshold": gradient_F}

    @torch.no_grad()
    def reset_latents_(self, dead_F: Tensor) -> None:
        alive = self.threshold[~dead_F]
        usual = float(alive.mean()) if len(alive) else _START
        self.threshold[dead_F] = usual if self.config.init_threshold is None else self.config.init_threshold

    @torch.no_grad()
    def start_above_(self, threshold: float) -> float:
        if self.config.init_threshold is None:
            self.threshold.fill_(threshold)
        return 0.0

    @torch.no_grad()
    def project_(self) -> None:
        self.threshold.clamp_(min=0)
