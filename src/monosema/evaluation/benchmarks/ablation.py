"""Latents that a probe hangs on, and its logits once they are taken out of the activations.

Shape letters: N rows, D width, F latents, K latents chosen, C probes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.evaluation.benchmarks.probes import Probe
from monosema.evaluation.benchmarks.rows import EncodedRows


def strongest_latents(effect_F: Tensor, most: int) -> Tensor:
    """The at most ``most`` latents with the largest effect above 0, largest first; ties go to the lower latent."""
    order = effect_F.argsort(descending=True, stable=True)[:most]
    return order[effect_F[order] > 0]


class AblatedLogits:
    """Logits of C probes on some rows, as more and more of the ``latents`` given are ablated.

    With the error term kept the row becomes ``x + decode(f') - decode(f) = x - Σ_i f_i W_dec[i]`` over the ablated i,
    and a linear probe's logit falls by ``Σ_i f_i ⟨W_dec[i], w⟩``: nothing else is computed.
    """

    def __init__(
        self, rows: EncodedRows, places: Tensor, latents_K: Tensor, W_dec: Tensor, probes: list[Probe]
    ) -> None:
        self._clean_NC = torch.stack([probe.logits(rows.x_ND[places]) for probe in probes], dim=1)
        self._f_NK = rows.columns(latents_K)[places]
        self._along_KC = W_dec[latents_K] @ torch.stack([probe.weight_D for probe in probes], dim=1)

    def without(self, n: int) -> Tensor:
        """[N, C] with the first n latents ablated (all of them where there are fewer)."""
        return self._clean_NC - self._f_NK[:, :n] @ self._along_KC[:n]
