"""AbsTopK: a fixed number of latents for every token, positive or negative."""

from __future__ import annotations

from typing import final

from torch import Tensor

from monosema.coders.activations.fixed import FixedCountActivation, mean_least
from monosema.kernels import Latents, select_row_top_k


@final
class AbsTopKActivation(FixedCountActivation):
    """``f = pre``, with its sign, on the k pre-activations of the token that are largest in magnitude.

    Source: AbsTopK, 2025, arXiv 2510.00404.
    """

    signed = True

    def _choose(self, score_BF: Tensor) -> tuple[Latents, Tensor]:
        latents = select_row_top_k(score_BF, int(self.k))
        return latents, mean_least(latents, int(self.k))
