"""What TopK, AbsTopK and BatchTopK have in common: how scores are made, inferred and differentiated."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection, where_active
from monosema.coders.activations.family import FixedCount, SavedRule
from monosema.coders.activations.running import RunningThreshold, common_factor
from monosema.core.errors import ConfigError
from monosema.kernels import Latents, Scores, select_above, select_row_top_k


class FixedCountActivation(Activation):
    """The head of activations that choose a fixed number of latents by a score.

    The score is ``pre`` (or ``|pre|`` where ``signed``), times ``‖W_dec_i‖`` where asked for. ``choose`` says how.
    At inference the same choice is made again (``inference="topk"``), or entries whose score exceeds the running
    threshold are active (``inference="threshold"``; before the first training step the same choice).
    """

    count_rule: ClassVar[str | None] = None
    """The word of file formats for the choice, made again at inference; None where they have none."""

    def __init__(self, config: FixedCount, d_sae: int):
        super().__init__()
        self._k = config.k
        self.d_sae = d_sae
        self.config = config
        self.weights_by_decoder_norm = config.weight_by_decoder_norm
        self.running = RunningThreshold(config.threshold_rate)

    @abstractmethod
    def choose(self, pre_BF: Tensor, weights_F: Tensor | None, k: float, *, may_fill: bool) -> tuple[Latents, Tensor]:
        """The entries chosen, ``k`` of each token or on average, and the threshold of scores this amounts to (0-d).

        ``weights_F [F]`` multiply the pre-activations in the comparison. ``may_fill``: on a GPU there may be other
        entries too, of value 0.
        """

    @property
    def k(self) -> float:
        """Active latents per token that are selected now; ``use_k_`` changes it."""
        return self._k

    def use_k_(self, k: float | None) -> None:
        self._k = self.config.k if k is None else k

    @property
    def threshold(self) -> float | None:
        """θ, the running threshold; None before the first training step."""
        return self.running.value

    def set_threshold(self, threshold: float) -> None:
        """Fix θ (what a saved file or a calibration says)."""
        self.running.set(threshold)

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        latents, least = self.choose(pre_BF, self._weights(weights_F), self.k, may_fill=True)
        return Selection(latents, least=least)

    def candidates(
        self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None
    ) -> tuple[Latents, ...]:
        """A quarter more than k, and eight: rounding reorders only neighbours."""
        return (self.choose(pre_BF, self._weights(weights_F), 1.25 * self.k + 8, may_fill=True)[0],)

    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        threshold = self.running.value
        if self.config.inference == "topk" or threshold is None:
            return self.choose(pre_BF, self._weights(weights_F), self.k, may_fill=False)[0]
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

    def saved_rule(self, dtype: torch.dtype) -> SavedRule | None:
        config, threshold = self.config, self.threshold
        by_norm = config.weight_by_decoder_norm
        if config.inference == "topk":
            if self.count_rule is None:
                return None
            return SavedRule(name=self.count_rule, k=config.k, by_decoder_norm=by_norm)
        if threshold is None:
            name = type(config).__name__
            raise ConfigError(f"this {name} coder has no threshold yet: train it first, or set_threshold()")
        return SavedRule(
            name="absthreshold" if self.signed else "jumprelu",
            by_decoder_norm=by_norm,
            tensors={"threshold": torch.full((self.d_sae,), threshold, dtype=dtype)},
        )

    def scores(self, pre_BF: Tensor, weights_F: Tensor | None) -> Tensor:
        """What latents compete by: ``[B, F]``."""
        return Scores(pre_BF, self._weights(weights_F), self.signed).dense()

    def _weights(self, weights_F: Tensor | None) -> Tensor | None:
        return weights_F if self.weights_by_decoder_norm else None


def choose_of_rows(
    pre_BF: Tensor, weights_F: Tensor | None, k: float, *, signed: bool, may_fill: bool
) -> tuple[Latents, Tensor]:
    """``choose`` of the k entries of each token whose score is largest."""
    latents = select_row_top_k(pre_BF, int(k), weights_F, signed=signed, may_fill=may_fill)
    scores = Scores(pre_BF, weights_F, signed).of(latents.values, latents.indices)
    return latents, mean_least(latents.with_values(scores), int(k))


def mean_least(latents: Latents, k: int) -> Tensor:
    """The mean over tokens of the least score chosen, 0 for a token with fewer than k: 0-d."""
    if latents.n_tokens == 0:
        return latents.values.new_zeros(())
    least = latents.values.new_full((latents.n_tokens,), torch.inf)
    least.scatter_reduce_(0, latents.rows(), latents.values, "amin")
    return torch.where(latents.crow.diff() == k, least, 0).mean()
