"""AbsTopK: a fixed number of latents for every token, positive or negative."""

from __future__ import annotations

from typing import final

from monosema.coders.activations.fixed import FixedCountActivation


@final
class AbsTopKActivation(FixedCountActivation):
    """``f = pre``, with its sign, on the k pre-activations of the token that are largest in magnitude.

    Source: AbsTopK, 2025, arXiv 2510.00404.
    """

    signed = True
