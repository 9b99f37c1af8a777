"""Latents that a probe hangs on, and its logits once they are taken out of the activations.

Shape letters: N rows, D width, F latents, K latents chosen, C probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.core.config import check_types
from monosema.core.errors import ConfigError
from monosema.evaluation.benchmarks.probes import Probe
from monosema.evaluation.benchmarks.rows import EncodedRows


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """How latents are taken out under probes, in targeted perturbation and in spurious correlation removal."""

    n_latents: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of latents ablated, each measured (SAEBench's)."""
    c: float = 1.0
    """Inverse strength of the probes' penalty (``fit_probe``)."""
    test_fraction: float = 0.2
    """Share of the rows that accuracies are measured on."""
    n_resamples: int = 1000
    """Bootstrap resamples of the test rows."""
    seed: int = 0
    """Decides the split and the resamples."""

    def __post_init__(self) -> None:
        check_types(self)
        numbers = self.n_latents
        if not numbers or min(numbers) < 1 or list(numbers) != sorted(set(numbers)):
            raise ConfigError(f"n_latents must be rising numbers of at least 1, got {numbers}")
        if self.n_resamples < 1:
            raise ConfigError(f"n_resamples must be at least 1, got {self.n_resamples}")


def strongest_latents(difference_F: Tensor, W_dec: Tensor, probe: Probe, most: int) -> Tensor:
    """The at most ``most`` latents with the largest positive effect ``difference_i ⟨W_dec[i], w⟩``, largest first.

    ``difference`` is ``E[f | label] - E[f | not]`` [F]. Ties go to the lower latent.
    """
    effect = difference_F * (W_dec.double() @ probe.weight_D)
    order = effect.argsort(descending=True, stable=True)[:most]
    return order[effect[order] > 0]


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
        self._along_KC = W_dec[latents_K].double() @ torch.stack([probe.weight_D for probe in probes], dim=1)

    def without(self, n: int) -> Tensor:
        """[N, C] with the first n latents ablated (all of them where there are fewer)."""
        return (self._clean_NC - self._f_NK[:, :n] @ self._along_KC[:n]).cpu()
