"""TopK: a fixed number of latents for every token."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection
from monosema.coders.config import TopK
from monosema.core.errors import ConfigError
from monosema.kernels import Latents, select_row_top_k


@final
class TopKActivation(Activation):
    """``f = pre`` on the k largest positive pre-activations of the token, 0 elsewhere.

    Source: Gao et al. 2024, arXiv 2406.04093, section 2.3 (here with the positivity that all implementations add).
    """

    def __init__(self, config: TopK, d_sae: int):
        super().__init__()
        self.k = config.k

    def select(self, pre_BF: Tensor) -> Selection:
        return Selection(self.infer(pre_BF))

    def infer(self, pre_BF: Tensor) -> Latents:
        return select_row_top_k(pre_BF, self.k)

    def infer_dense(self, pre_BF: Tensor) -> Tensor:
        kept = self.infer(pre_BF.detach()).to_dense() > 0
        return pre_BF * kept

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        return ActivationGradients((selection.latents.with_values(gradients.latents),))

    def scale_latents_(self, factors_F: Tensor) -> None:
        if not torch.allclose(factors_F, factors_F[0].expand_as(factors_F), rtol=1e-4):
            raise ConfigError(
                "folding unequal decoder norms would change which latents TopK selects; "
                "train with decoder='unit_norm', or leave the norms unfolded"
            )
