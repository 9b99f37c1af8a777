"""TopK: a fixed number of latents for every token."""

from __future__ import annotations

from typing import final

from torch import Tensor

from monosema.coders.activations.fixed import FixedCountActivation
from monosema.kernels import Latents


@final
class TopKActivation(FixedCountActivation):
    """``f = pre`` on the k largest positive pre-activations of the token, 0 elsewhere.

    Source: Gao et al. 2024, arXiv 2406.04093, section 2.3 (here with the positivity that all implementations add).
    """

    def _choose(self, pre_BF: Tensor, weights_F: Tensor | None) -> tuple[Latents, Tensor]:
        return self._choose_in_rows(pre_BF, weights_F)
