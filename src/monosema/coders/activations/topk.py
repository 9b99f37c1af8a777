"""TopK: a fixed number of latents for every token."""

from __future__ import annotations

from typing import final

from torch import Tensor

from monosema.coders.activations.fixed import FixedCountActivation, mean_least
from monosema.kernels import Latents, select_row_top_k


@final
class TopKActivation(FixedCountActivation):
    """``f = pre`` on the k largest positive pre-activations of the token, 0 elsewhere.

    Source: Gao et al. 2024, arXiv 2406.04093, section 2.3 (here with the positivity that all implementations add).
    """

    def _choose(self, score_BF: Tensor) -> tuple[Latents, Tensor]:
        latents = select_row_top_k(score_BF, int(self.k))
        return latents, mean_least(latents, int(self.k))
