"""The built-in activations' options and what each says of itself, without torch.

A further one stands here, and its module in a file of its own in this folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from monosema.coders.activations.family import (
    ActivationConfig,
    Equivariance,
    FixedCount,
    Inference,
    SavedRule,
    register_activation,
)
from monosema.core.config import check_types
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options

if TYPE_CHECKING:
    from monosema.coders.activations.base import Activation

__all__ = ["AbsTopK", "BatchTopK", "Gated", "JumpReLU", "ReLU", "TanhReLU", "TopK"]

Kernel = Literal["rectangle", "triangle", "epanechnikov", "gaussian"]
_L1 = {"kind": "L1", "target_l0": 32}
_L0 = {"kind": "L0", "target_l0": 32}


@register_activation
@explains_options
@dataclass(frozen=True, kw_only=True)
class ReLU(ActivationConfig):
    """``f = ReLU(pre)``; sparse only through a sparsity loss."""

    default_sparsity = _L1
    architecture = "standard"

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.relu import ReLUActivation

        return ReLUActivation(self, d_sae)

    def scale_equivariance(self) -> Equivariance:
        return "each"

    @classmethod
    def of_rule(cls, rule: SavedRule) -> ReLU | None:
        return cls() if rule.name == "relu" else None


@register_activation
@explains_options
@dataclass(frozen=True, kw_only=True)
class TanhReLU(ActivationConfig):
    """``f = tanh(ReLU(pre))``; sparse only through a sparsity loss, activations at most one."""

    default_sparsity = _L1
    decoder_init_norm = 1.0
    architecture = "tanh_relu"

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.tanhrelu import TanhReLUActivation

        return TanhReLUActivation(self, d_sae)

    def scale_equivariance(self) -> Equivariance:
        return "none"

    @classmethod
    def of_rule(cls, rule: SavedRule) -> TanhReLU | None:
        return cls() if rule.name == "tanhrelu" else None


@register_activation
@explains_options
@dataclass(frozen=True, kw_only=True)
class TopK(FixedCount):
    """The k largest positive pre-activations of each token (Gao et al. 2024, arXiv 2406.04093)."""

    architecture = "topk"
    k: int = field(kw_only=False)
    """Active latents per token."""
    inference: Inference = "topk"
    """The rule at inference: the same k of each token, or all above the running threshold."""
    weight_by_decoder_norm: bool = True
    """Whether latents compete by ``pre_i · ‖W_dec_i‖``, what they would add, rather than by ``pre_i``; the same where
    decoder rows are unit, as those of a trained dictionary are."""
    threshold_rate: float = 0.05
    """Share of the newest batch in the running mean of the selection threshold."""

    def __post_init__(self) -> None:
        _check_fixed_count(self, least=1)

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.topk import TopKActivation

        return TopKActivation(self, d_sae)

    def infers_by(self, rule: SavedRule) -> bool:
        return _states_k(rule, "topk") or _has_one_threshold(rule)

    @classmethod
    def of_rule(cls, rule: SavedRule) -> TopK | None:
        if rule.name != "topk":
            return None
        return cls(k=rule.whole_k(), weight_by_decoder_norm=rule.by_decoder_norm)


@register_activation
@explains_options
@dataclass(frozen=True, kw_only=True)
class AbsTopK(FixedCount):
    """The k pre-activations of each token that are largest in magnitude, with their signs (arXiv 2510.00404)."""

    architecture = "abs_topk"
    k: int = field(kw_only=False)
    """Active latents per token."""
    inference: Inference = "topk"
    """The rule at inference: the same k of each token, or all whose magnitude exceeds the running threshold."""
    weight_by_decoder_norm: bool = True
    """Whether latents compete by ``|pre_i| · ‖W_dec_i‖`` rather than by ``|pre_i|``."""
    threshold_rate: float = 0.05
    """Share of the newest batch in the running mean of the selection threshold."""

    def __post_init__(self) -> None:
        _check_fixed_count(self, least=1)

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.abstopk import AbsTopKActivation

        return AbsTopKActivation(self, d_sae)

    def infers_by(self, rule: SavedRule) -> bool:
        return _states_k(rule, "abstopk") or rule.name == "absthreshold"

    @classmethod
    def of_rule(cls, rule: SavedRule) -> AbsTopK | None:
        if rule.name != "abstopk":
            return None
        return cls(k=rule.whole_k(), weight_by_decoder_norm=rule.by_decoder_norm)


@register_activation
@explains_options
@dataclass(frozen=True, kw_only=True)
class BatchTopK(FixedCount):
    """The k·B largest positive pre-activations of a batch of B tokens (Bussmann et al. 2024, arXiv 2412.06410)."""

    architecture = "batch_topk"
    k: float = field(kw_only=False)
    """Active latents per token, on average over the batch; may be fractional."""
    inference: Inference = "threshold"
    """The rule at inference: all above the running threshold, or the same choice in the batch at hand."""
    weight_by_decoder_norm: bool = True
    """Whether latents compete by ``pre_i · ‖W_dec_i‖``, what they would add, rather than by ``pre_i``; the same where
    decoder rows are unit, as those of a trained dictionary are."""
    threshold_rate: float = 0.05
    """Share of the newest batch in the running mean of the selection threshold, which is the rule at inference."""

    def __post_init__(self) -> None:
        _check_fixed_count(self, least=None)

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.batchtopk import BatchTopKActivation

        return BatchTopKActivation(self, d_sae)

    def infers_by(self, rule: SavedRule) -> bool:
        return rule.name == "batchtopk" or _has_one_threshold(rule)


@register_activation
@explains_options
@dataclass(frozen=True, kw_only=True)
class JumpReLU(ActivationConfig):
    """``f = pre · 1[pre > θ]`` with a learned threshold per latent (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    default_sparsity = _L0
    architecture = "jumprelu"
    init_threshold: float | None = None
    """Threshold of every latent at the start, in the units of the (scaled) pre-activations. By default training starts
    with the one that lets six times the wanted L0 through, where one is wanted, and 0.1 otherwise."""
    bandwidth: float = 0.5
    """Width ε of the window around the threshold through which it learns, in the same units."""
    kernel: Kernel = "rectangle"
    """Shape of that window."""
    ste_to_input: bool = True
    """Whether the straight-through estimates reach the pre-activations too (Anthropic, January 2025)."""

    def __post_init__(self) -> None:
        check_types(self)
        start = self.init_threshold
        _require(start is None or start >= 0, f"JumpReLU: init_threshold must not be negative, got {start}")
        _require(self.bandwidth > 0, f"JumpReLU: bandwidth must be positive, got {self.bandwidth}")

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.jumprelu import JumpReLUActivation

        return JumpReLUActivation(self, d_sae)

    def scale_equivariance(self) -> Equivariance:
        return "each"

    def infers_by(self, rule: SavedRule) -> bool:
        return rule.name == "jumprelu"

    @classmethod
    def of_rule(cls, rule: SavedRule) -> JumpReLU | None:
        return cls() if rule.name == "jumprelu" else None


@register_activation
@explains_options
@dataclass(frozen=True, kw_only=True)
class Gated(ActivationConfig):
    """``f = 1[pre + b_gate > 0] · ReLU(exp(r_mag) · pre + b_mag)`` (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

    default_sparsity = _L1
    prefers_unit_norm = True
    architecture = "gated"

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.gated import GatedActivation

        return GatedActivation(self, d_sae)

    def scale_equivariance(self) -> Equivariance:
        return "each"

    @classmethod
    def of_rule(cls, rule: SavedRule) -> Gated | None:
        return cls() if rule.name == "gated" else None


def _check_fixed_count(config: FixedCount, *, least: float | None) -> None:
    """Refuse a k below ``least``, or one that is not positive without it, and a rate that is no share."""
    check_types(config)
    name, rate = type(config).__name__, config.threshold_rate
    expected = "positive" if least is None else f"at least {least:g}"
    _require(config.k > 0 and (least is None or config.k >= least), f"{name}: k must be {expected}, got {config.k}")
    _require(0 < rate <= 1, f"{name}: threshold_rate must be in (0, 1], got {rate}")


def _states_k(rule: SavedRule, name: str) -> bool:
    """Whether ``rule`` is the one of this ``name``; ``FileError`` where it does not state its k."""
    return rule.name == name and rule.whole_k() > 0


def _has_one_threshold(rule: SavedRule) -> bool:
    """Whether all latents of a ``jumprelu`` rule have the same threshold."""
    threshold = rule.tensors.get("threshold")
    return rule.name == "jumprelu" and threshold is not None and bool((threshold == threshold[0]).all())


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
