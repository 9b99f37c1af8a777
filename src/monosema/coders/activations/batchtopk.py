"""BatchTopK: a fixed number of latents per token on average over the batch."""

from __future__ import annotations

from typing import final

from torch import Tensor

from monosema.coders.activations.base import Selection
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.kernels import Latents, select_batch_top_k_of_parts
from monosema.kernels.select import Parts


@final
class BatchTopKActivation(FixedCountActivation):
    """``f = pre`` on the ``round(k · B)`` largest positive pre-activations of the batch.

    At inference, by default, ``f = pre · 1[pre > θ]`` with one threshold for all latents.
    Source: Bussmann et al. 2024, arXiv 2412.06410, section 3.
    """

    count_rule = "batchtopk"
    _last_least: float | None = None

    def choose(self, pre_BF: Tensor, weights_F: Tensor | None, k: float, *, may_fill: bool) -> tuple[Latents, Tensor]:
        return self._choose_in_parts(lambda: iter([pre_BF]), len(pre_BF), weights_F, k, may_fill=may_fill)

    def select_parts(
        self, parts: Parts, n_tokens: int, weights_F: Tensor | None = None, window: float | None = None
    ) -> Selection:
        latents, least = self._choose_in_parts(parts, n_tokens, self._weights(weights_F), self.k, may_fill=True)
        return Selection(latents, least=least)

    def _choose_in_parts(
        self, parts: Parts, n_tokens: int, weights_F: Tensor | None, k: float, *, may_fill: bool
    ) -> tuple[Latents, Tensor]:
        n_entries = min(round(k * n_tokens), n_tokens * self.d_sae)
        guess = None if self._last_least is None else 0.9 * self._last_least
        latents, least = select_batch_top_k_of_parts(
            parts, (n_tokens, self.d_sae), n_entries, guess, weights_F, signed=self.signed, may_fill=may_fill
        )
        if least.device.type == "cpu":  # speeds the next search up, and never changes a result
            self._last_least = float(least)
        return latents, least
