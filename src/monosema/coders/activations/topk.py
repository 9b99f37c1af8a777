"""TopK: a fixed number of latents for every token."""

from __future__ import annotations

from typing import final

from torch import Tensor

from monosema.coders.activations.fixed import FixedCountActivation, choose_of_rows
from monosema.kernels import Latents


@final
class TopKActivation(FixedCountActivation):
    """``f = pre`` on the k largest positive pre-activations of the token, 0 elsewhere.

    Source: Gao et al. 2024, arXiv 2406.04093, section 2.3 (here with the positivity that all implementations add).
    """

    count_rule = "topk"

    def choose(self, pre_BF: Tensor, weights_F: Tensor | None, k: float, *, may_fill: bool) -> tuple[Latents, Tensor]:
        return choose_of_rows(pre_BF, weights_F, k, signed=False, may_fill=may_fill)
