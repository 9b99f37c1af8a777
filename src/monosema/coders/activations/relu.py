"""ReLU: every positive pre-activation is active."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection
from monosema.coders.config import ReLU
from monosema.kernels import Latents, select_above


@final
class ReLUActivation(Activation):
    """``f = max(pre, 0)``, at training and at inference alike."""

    def __init__(self, config: ReLU, d_sae: int):
        super().__init__()

    def select(self, pre_BF: Tensor) -> Selection:
        return Selection(self.infer(pre_BF))

    def infer(self, pre_BF: Tensor) -> Latents:
        return select_above(pre_BF, 0.0)

    def infer_dense(self, pre_BF: Tensor) -> Tensor:
        return torch.relu(pre_BF)

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        return ActivationGradients((selection.latents.with_values(gradients.latents),))

    def scale_latents_(self, factors_F: Tensor) -> None:
        pass  # ReLU has no parameters and commutes with positive factors
