"""AbsTopK: a fixed number of latents for every token, positive or negative."""

from __future__ import annotations

from typing import final

from torch import Tensor

from monosema.coders.activations.fixed import FixedCountActivation, choose_of_rows
from monosema.kernels import Latents


@final
class AbsTopKActivation(FixedCountActivation):
    """``f = pre``, with its sign, on the k pre-activations of the token that are largest in magnitude.

    Source: AbsTopK, 2025, arXiv 2510.00404.
    """

    signed = True
    count_rule = "abstopk"

    def choose(self, pre_BF: Tensor, weights_F: Tensor | None, k: float, *, may_fill: bool) -> tuple[Latents, Tensor]:
        return choose_of_rows(pre_BF, weights_F, k, signed=True, may_fill=may_fill)
