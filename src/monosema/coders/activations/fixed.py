"""What TopK, AbsTopK and BatchTopK have in common: how scores are made, inferred and differentiated."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection
from monosema.coders.activations.running import RunningThreshold, common_factor
from monosema.coders.config import FixedCount
from monosema.kernels import Latents, select_above


class FixedCountActivation(Activation):
    """A fixed number of latents is chosen by a score: ``pre`` (or ``|pre|``), times ``‖W_dec_i‖`` where asked for.

    At inference the same choice is made again (``inference="topk"``), or entries whose score exceeds the running
    threshold are active (``inference="threshold"``; before the first training step the same choice).
    """

    signed = False
    """Whether the score is the magnitude, and activations keep their sign."""

    def __init__(self, config: FixedCount, d_sae: int):
        super().__init__()
        self.k: float = config.k
        self.config = config
        self.weights_by_decoder_norm = config.weight_by_decoder_norm
        self.running = RunningThreshold(config.threshold_rate)

    @abstractmethod
    def _choose(self, score_BF: Tensor) -> tuple[Latents, Tensor]:
        """The entries chosen, with their scores, and the threshold the choice amounts to (0-d)."""

    @property
    def threshold(self) -> float | None:
        """θ, the running threshold; None before the first training step."""
        return self.running.value

    def set_threshold(self, threshold: float) -> None:
        """Fix θ (what a saved file or a calibration says)."""
        self.running.set(threshold)

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        latents, least = self._choose(self.scores(pre_BF, weights_F))
        return Selection(self._valued(latents, pre_BF), least=least)

    def candidates(
        self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None
    ) -> tuple[Latents, ...]:
        """A quarter more than k, and eight: rounding reorders only neighbours."""
        k = self.k
        try:
            self.k = 1.25 * k + 8
            return (self.select(pre_BF, weights_F).latents,)
        finally:
            self.k = k

    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        threshold = self.running.value
        if self.config.inference == "topk" or threshold is None:
            return self.select(pre_BF, weights_F).latents
        return self._valued(select_above(self.scores(pre_BF, weights_F), threshold), pre_BF)

    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        return pre_BF * (self.infer(pre_BF.detach(), weights_F).to_dense() != 0)

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        return ActivationGradients((selection.latents.with_values(gradients.latents),))

    def scale_latents_(self, factors_F: Tensor) -> None:
        if not self.weights_by_decoder_norm:  # such a score does not change when norms move into the encoder
            self.running.scale_(common_factor(factors_F, type(self.config).__name__))

    def scale_weights_(self, factor: float) -> None:
        self.running.total.mul_(factor)

    def update_(self, selection: Selection, ok: Tensor) -> None:
        assert selection.least is not None
        self.running.update_(selection.least, ok)

    def scores(self, pre_BF: Tensor, weights_F: Tensor | None) -> Tensor:
        """What latents compete by: ``[B, F]``."""
        score = pre_BF.abs() if self.signed else pre_BF
        if not self.weights_by_decoder_norm:
            return score
        assert weights_F is not None
        return score * weights_F

    def _valued(self, latents: Latents, pre_BF: Tensor) -> Latents:
        if not self.signed and not self.weights_by_decoder_norm:
            return latents  # the score is the activation
        flat = latents.rows() * latents.d_sae + latents.indices.long()
        return replace(latents, values=pre_BF.reshape(-1)[flat])


def mean_least(latents: Latents, k: int) -> Tensor:
    """The mean over tokens of the least score chosen, 0 for a token with fewer than k: 0-d."""
    if latents.n_tokens == 0:
        return latents.values.new_zeros(())
    least = latents.values.new_full((latents.n_tokens,), torch.inf)
    least.scatter_reduce_(0, latents.rows(), latents.values, "amin")
    return torch.where(latents.crow.diff() == k, least, 0).mean()
