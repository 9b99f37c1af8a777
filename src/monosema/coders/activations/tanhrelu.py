"""Tanh-ReLU: activations saturate at one."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection, where_active
from monosema.coders.activations.configs import TanhReLU
from monosema.coders.activations.family import SavedRule
from monosema.coders.activations.windows import kernel_density, near_entries
from monosema.core.errors import ConfigError
from monosema.kernels import Latents, select_above


@final
class TanhReLUActivation(Activation):
    """``f = tanh(max(pre, 0))``, with ``∂f/∂pre = 1 - f²`` where active. Source: SAELens' ``tanh-relu``."""

    def __init__(self, config: TanhReLU, d_sae: int):
        super().__init__()

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        latents = self.infer(pre_BF)
        if window is None:
            return Selection(latents)
        near = near_entries(pre_BF, window)
        return Selection(latents, near=near, near_activations=near.values.clamp(min=0).tanh())

    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        latents = select_above(pre_BF, 0.0)
        return replace(latents, values=latents.values.tanh())

    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        return where_active(pre_BF > 0, pre_BF).tanh()

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        values = selection.latents.values
        pre = [selection.latents.with_values(gradients.latents * (1 - values.square()))]
        if gradients.near_step is not None:
            assert selection.near is not None and gradients.window is not None
            density = kernel_density(selection.near.values, gradients.window)
            pre.append(selection.near.with_values(gradients.near_step * density))
        return ActivationGradients(tuple(pre))

    def saved_rule(self, dtype: torch.dtype) -> SavedRule:
        return SavedRule(name="tanhrelu")

    def start_above_(self, threshold: float) -> float:
        return -threshold

    def scale_latents_(self, factors_F: Tensor) -> None:
        if not torch.allclose(factors_F, torch.ones_like(factors_F)):
            raise ConfigError("tanh-ReLU saturates at 1, so decoder norms cannot be folded into its encoder")
