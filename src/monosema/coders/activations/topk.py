"""TopK: a fixed number of latents for every token."""

from __future__ import annotations

from typing import final

from monosema.coders.activations.fixed import FixedCountActivation


@final
class TopKActivation(FixedCountActivation):
    """``f = pre`` on the k largest positive pre-activations of the token, 0 elsewhere.

    Source: Gao et al. 2024, arXiv 2406.04093, section 2.3 (here with the positivity that all implementations add).
    """
