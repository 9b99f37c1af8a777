"""ReLU: every positive pre-activation is active."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection, where_active
from monosema.coders.activations.configs import ReLU
from monosema.coders.activations.family import SavedRule
from monosema.coders.activations.windows import kernel_density, near_entries
from monosema.kernels import Latents, select_above


@final
class ReLUActivation(Activation):
    """``f = max(pre, 0)``, at training and at inference alike.

    A loss on the number of active latents reaches ``pre`` through ``∂1[pre > 0]/∂pre ≈ K(pre/ε)/ε``.
    """

    def __init__(self, config: ReLU, d_sae: int):
        super().__init__()

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        latents = self.infer(pre_BF)
        if window is None:
            return Selection(latents)
        near = near_entries(pre_BF, window)
        return Selection(latents, near=near, near_activations=near.values.clamp(min=0))

    def above(self, selection: Selection) -> Latents:
        return selection.latents

    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        return select_above(pre_BF, 0.0)

    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        return where_active(pre_BF > 0, pre_BF)

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        pre = [selection.latents.with_values(gradients.latents)]
        if gradients.near_step is not None:
            assert selection.near is not None and gradients.window is not None
            density = kernel_density(selection.near.values, gradients.window)
            pre.append(selection.near.with_values(gradients.near_step * density))
        return ActivationGradients(tuple(pre))

    def saved_rule(self, dtype: torch.dtype) -> SavedRule:
        return SavedRule(name="relu")

    def start_above_(self, threshold: float) -> float:
        return -threshold

    def scale_latents_(self, factors_F: Tensor) -> None:
        pass  # ReLU has no parameters and commutes with positive factors
