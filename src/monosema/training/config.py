"""How a coder is trained, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Union

from monosema.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class L1:
    """``λ · mean over tokens of Σ_i f_i ‖W_dec_i‖`` (with a unit-norm decoder the plain L1 norm)."""

    is_variant: ClassVar[bool] = True
    coefficient: float = 1.0
    """λ, relative to inputs scaled to norm √d; the starting value where ``target_l0`` is given."""
    target_l0: float | None = None
    """Wanted mean number of active latents; a controller then adjusts λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""

    def __post_init__(self) -> None:
        _check_sparsity(self)


@dataclass(frozen=True, kw_only=True)
class L0:
    """``λ · mean over tokens of Σ_i 1[pre_i > θ_i]``, which trains JumpReLU's thresholds."""

    is_variant: ClassVar[bool] = True
    coefficient: float = 0.1
    """λ, relative to inputs scaled to norm √d; the starting value where ``target_l0`` is given."""
    target_l0: float | None = None
    """Wanted mean number of active latents; a controller then adjusts λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""

    def __post_init__(self) -> None:
        _check_sparsity(self)


Sparsity = Union[L1, L0]


@dataclass(frozen=True, kw_only=True)
class AuxK:
    """Dead latents learn to predict the error: ``α · mean ‖e - ê‖²`` with ê from the ``k`` strongest dead latents.

    Source: Gao et al. 2024, arXiv 2406.04093, appendix A.2.
    """

    is_variant: ClassVar[bool] = True
    coefficient: float = 1 / 32
    """α, relative to the reconstruction loss."""
    k: int | None = None
    """Dead latents active per token; half the output width, at most 512, by default."""
    dead_after_tokens: int | None = None
    """A latent is dead after so many tokens without firing; a tenth of the run, at most 10 million, by default."""

    def __post_init__(self) -> None:
        if self.coefficient < 0 or (self.k is not None and self.k < 1):
            raise ConfigError("AuxK: coefficient must not be negative and k must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training run; the defaults work untouched."""

    tokens: int = 1_200_000
    """Training tokens (rows), in whole batches."""
    lr: float | Literal["auto"] = "auto"
    """Adam's learning rate; ``"auto"`` chooses by width, batch and run length (``schedules.automatic_lr``)."""
    seed: int = 0
    """Seed of every draw made while training."""
    warmup_fraction: float = 0.03
    """Share of the run over which the learning rate rises linearly."""
    decay_fraction: float = 0.3
    """Share of the run, at its end, over which the learning rate falls linearly to zero."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    epsilon: float = 1e-8
    """Adam's ε."""
    grad_clip: float | None = None
    """Largest global gradient norm; none by default."""
    sparsity: Sparsity | None = None
    """Sparsity loss; by default the activation's own (none for TopK and BatchTopK)."""
    revive: AuxK | None = AuxK()
    """What brings dead latents back; None for nothing."""
    decoder: Literal["unit_norm", "free"] = "unit_norm"
    """Decoder rows of norm one, their gradient projected; or unconstrained."""
    b_dec_init: Literal["geometric_median", "mean", "zeros"] = "geometric_median"
    """Initial decoder bias, from rows of the first chunk."""
    input_scaling: Literal["expected_norm", "none"] = "expected_norm"
    """Scale inputs and targets by constants so that their mean norm is √d while training; folded on save."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; a tenth of the run by default, 0 for none but the last."""
    keep_checkpoints: int = 2
    """Checkpoints kept on disk, the newest ones."""
    log_every: int = 50
    """Steps between logged lines of metrics."""
    eval_every: int = 0
    """Steps between evaluations on held-out text while training; 0 for none but the last."""

    def __post_init__(self) -> None:
        _require(self.tokens >= 1, f"tokens must be at least 1, got {self.tokens}")
        _require(self.lr == "auto" or self.lr > 0, f"lr must be positive or 'auto', got {self.lr}")
        for name in ("warmup_fraction", "decay_fraction"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be between 0 and 1, got {getattr(self, name)}")
        _require(
            self.warmup_fraction + self.decay_fraction <= 1,
            "warmup_fraction and decay_fraction together exceed the run; lower one of them",
        )
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        _require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
        _require(self.eval_every >= 0, f"eval_every must not be negative, got {self.eval_every}")
        _require(self.keep_checkpoints >= 1, f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}")
        _require(
            self.checkpoint_every is None or self.checkpoint_every >= 0,
            f"checkpoint_every must not be negative, got {self.checkpoint_every}",
        )
        _require(self.grad_clip is None or self.grad_clip > 0, f"grad_clip must be positive, got {self.grad_clip}")


def _check_sparsity(config: L1 | L0) -> None:
    name = type(config).__name__
    _require(config.coefficient > 0, f"{name}: coefficient must be positive, got {config.coefficient}")
    _require(
        config.target_l0 is None or config.target_l0 > 0, f"{name}: target_l0 must be positive, got {config.target_l0}"
    )
    _require(0 <= config.warmup_fraction <= 1, f"{name}: warmup_fraction must be between 0 and 1")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
