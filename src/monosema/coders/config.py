"""What a sparse coder is made of, without torch: its activation, widths and sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Union

from monosema.core.errors import ConfigError

if TYPE_CHECKING:
    from monosema.coders.activations.base import Activation


@dataclass(frozen=True, kw_only=True)
class ReLU:
    """``f = ReLU(pre)``; sparse only through a sparsity loss."""

    is_variant: ClassVar[bool] = True

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.relu import ReLUActivation

        return ReLUActivation(self, d_sae)


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The k largest positive pre-activations of each token (Gao et al. 2024, arXiv 2406.04093)."""

    is_variant: ClassVar[bool] = True
    k: int
    """Active latents per token."""

    def __post_init__(self) -> None:
        _require(self.k >= 1, f"TopK: k must be at least 1, got {self.k}")

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.topk import TopKActivation

        return TopKActivation(self, d_sae)


@dataclass(frozen=True, kw_only=True)
class BatchTopK:
    """The k·B largest positive pre-activations of a batch of B tokens (Bussmann et al. 2024, arXiv 2412.06410)."""

    is_variant: ClassVar[bool] = True
    k: float
    """Active latents per token, on average over the batch; may be fractional."""
    threshold_rate: float = 0.05
    """Share of the newest batch in the running mean of the selection threshold, which is the rule at inference."""

    def __post_init__(self) -> None:
        _require(self.k > 0, f"BatchTopK: k must be positive, got {self.k}")
        rate = self.threshold_rate
        _require(0 < rate <= 1, f"BatchTopK: threshold_rate must be in (0, 1], got {rate}")

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.batchtopk import BatchTopKActivation

        return BatchTopKActivation(self, d_sae)


@dataclass(frozen=True, kw_only=True)
class JumpReLU:
    """``f = pre · 1[pre > θ]`` with a learned threshold per latent (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    is_variant: ClassVar[bool] = True
    init_threshold: float = 0.1
    """Threshold of every latent at the start, in the units of the (scaled) pre-activations."""
    bandwidth: float = 0.1
    """Width ε of the window around the threshold through which it learns, in the same units."""

    def __post_init__(self) -> None:
        _require(self.init_threshold >= 0, f"JumpReLU: init_threshold must not be negative, got {self.init_threshold}")
        _require(self.bandwidth > 0, f"JumpReLU: bandwidth must be positive, got {self.bandwidth}")

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.jumprelu import JumpReLUActivation

        return JumpReLUActivation(self, d_sae)


@dataclass(frozen=True, kw_only=True)
class Gated:
    """``f = 1[pre + b_gate > 0] · ReLU(exp(r_mag) · pre + b_mag)`` (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

    is_variant: ClassVar[bool] = True

    def build(self, d_sae: int) -> Activation:
        from monosema.coders.activations.gated import GatedActivation

        return GatedActivation(self, d_sae)


ActivationConfig = Union[ReLU, TopK, BatchTopK, JumpReLU, Gated]

BDecMode = Literal["input_and_output", "output", "none"]


@dataclass(frozen=True, kw_only=True)
class CoderConfig:
    """Shapes, activation and sites of one sparse coder."""

    d_in: int
    """Width of what is read (the sum over the sites read)."""
    d_sae: int
    """Number of latents."""
    d_out: int
    """Width of what is written (the sum over the sites written)."""
    activation: ActivationConfig
    """How pre-activations become sparse latents."""
    b_dec: BDecMode = "input_and_output"
    """Where the decoder bias acts: subtracted from the input and added to the output, only added, or absent."""
    skip: bool = False
    """Whether a linear map ``W_skip [d_in, d_out]`` from input to output is added (skip transcoder)."""
    hook_name: str | None = None
    """Site read; set from the stream when training starts."""
    hook_name_out: str | None = None
    """Site written; equal to ``hook_name`` for an SAE."""
    dtype: str = "float32"
    """Floating-point type of the parameters."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae", "d_out"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        k = getattr(self.activation, "k", None)
        _require(k is None or k <= self.d_sae, f"k={k} exceeds d_sae={self.d_sae}; lower k or widen the dictionary")
        _require(
            self.b_dec != "input_and_output" or self.d_in == self.d_out,
            f"b_dec='input_and_output' needs d_in == d_out, got {self.d_in} and {self.d_out}; use b_dec='output'",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
