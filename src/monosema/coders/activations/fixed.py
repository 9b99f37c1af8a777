"""What TopK, AbsTopK and BatchTopK have in common: how scores are made, inferred and differentiated."""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection, where_active
from monosema.coders.activations.running import RunningThreshold, common_factor
from monosema.coders.config import FixedCount
from monosema.kernels import Latents, Scores, select_above, select_row_top_k


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
        self.d_sae = d_sae
        self.config = config
        self.weights_by_decoder_norm = config.weight_by_decoder_norm
        self.running = RunningThreshold(config.threshold_rate)

    def _choose(self, pre_BF: Tensor, weights_F: Tensor | None, *, may_fill: bool) -> tuple[Latents, Tensor]:
        """The entries chosen, here k of each token, and the threshold of scores that the choice amounts to (0-d).

        ``may_fill``: on a GPU there may be others too, of value 0.
        """
        latents = select_row_top_k(pre_BF, int(self.k), weights_F, signed=self.signed, may_fill=may_fill)
        scores = Scores(pre_BF, weights_F, self.signed).of(latents.values, latents.indices)
        return latents, mean_least(latents.with_values(scores), int(self.k))

    @property
    def threshold(self) -> float | None:
        """θ, the running threshold; None before the first training step."""
        return self.running.value

    def set_threshold(self, threshold: float) -> None:
        """Fix θ (what a saved file or a calibration says)."""
        self.running.set(threshold)

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        latents, least = self._choose(pre_BF, self._weights(weights_F), may_fill=True)
        return Selection(latents, least=least)

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
            return self._choose(pre_BF, self._weights(weights_F), may_fill=False)[0]
        scores = Scores(pre_BF, self._weights(weights_F), self.signed)
        return scores.activations(select_above(scores.dense(), threshold))

    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        return where_active(self.infer(pre_BF.detach(), weights_F).to_dense() != 0, pre_BF)

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        latents = selection.latents  # where a selection was filled up, what has the value 0 is not active
        return ActivationGradients((latents.with_values(torch.where(latents.values != 0, gradients.latents, 0)),))

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
        return Scores(pre_BF, self._weights(weights_F), self.signed).dense()

    def _weights(self, weights_F: Tensor | None) -> Tensor | None:
        return weights_F if self.weights_by_decoder_norm else None


def mean_least(latents: Latents, k: int) -> Tensor:
    """The mean over tokens of the least score chosen, 0 for a token with fewer than k: 0-d."""
    if latents.n_tokens == 0:
        return latents.values.new_zeros(())
    least = latents.values.new_full((latents.n_tokens,), torch.inf)
    least.scatter_reduce_(0, latents.rows(), latents.values, "amin")
    return torch.where(latents.crow.diff() == k, least, 0).mean()
