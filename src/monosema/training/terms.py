"""The parts a training objective is put together from, without torch: sparsity losses, levels, policies, phases."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Union

from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options
from monosema.training.resample_presets import RESAMPLE_PRESETS, ResampleBy, ResamplePreset, ResampleRule

if TYPE_CHECKING:
    from monosema.training.term import Term, TermContext

Weighting = Literal["decoder_norm", "concatenated_norm", "none"]
"""What multiplies an activation in a sparsity loss: the sum over sites of its decoder norms, the norm of its whole
decoder row, or nothing. With a unit-norm decoder of one site the three are the same."""


class TermConfig(ABC):
    """The config of a term of the objective."""

    name: ClassVar[str]
    """What its value is logged as, behind ``loss/``."""
    coefficient: float
    """What the term is multiplied by."""

    @abstractmethod
    def build(self, context: TermContext) -> Term:
        """The term for the dictionary of ``context``."""


@explains_options
@dataclass(frozen=True, kw_only=True)
class L1:
    """``λ · mean over tokens of Σ_i v_i`` with ``v_i = f_i ‖W_dec_i‖`` (April update; unit-norm: the plain L1 norm).

    For Gated, here and in ``Lp`` and ``Tanh``, ``f_i`` is the gate's value ``ReLU(π_i)``; for AbsTopK ``|f_i|``.
    """

    is_variant: ClassVar[bool] = True
    coefficient: float = 1.0
    """λ, relative to inputs scaled to norm √d; the starting value where ``target_l0`` is given."""
    target_l0: float | None = None
    """Wanted mean number of active latents; a controller then adjusts λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""
    weighting: Weighting = "decoder_norm"
    """What multiplies the activations."""

    def __post_init__(self) -> None:
        _check_sparsity(self)


@explains_options
@dataclass(frozen=True, kw_only=True)
class Lp:
    """``λ · mean of Σ_i v_i^p``, or of ``(Σ_i v_i^p)^(1/p)`` with ``root``; p may fall during the run (p-annealing).

    At each update of p, λ is multiplied by the ratio of the mean penalties under the old and the new p over the last
    ten steps. Source: Karvonen et al. 2024, arXiv 2408.00113, section 3.2.
    """

    is_variant: ClassVar[bool] = True
    coefficient: float = 0.1
    """λ before any re-scaling; the starting value where ``target_l0`` is given."""
    p: float = 1.0
    """p at the start."""
    p_end: float | None = None
    """p at the end; the same as at the start by default."""
    anneal_start_fraction: float = 0.1
    """Share of the run after which p begins to fall."""
    n_updates: int = 10
    """Equal steps in which it falls."""
    root: bool = False
    """Whether the p-th root of a token's sum is taken."""
    target_l0: float | None = None
    """Wanted mean number of active latents; a controller then adjusts λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""
    weighting: Weighting = "decoder_norm"
    """What multiplies the activations."""

    def __post_init__(self) -> None:
        _check_sparsity(self)
        for name, p in (("p", self.p), ("p_end", self.p_end)):
            _require(p is None or 0 < p <= 2, f"Lp: {name} must be above 0 and at most 2, got {p}")
        _require(self.n_updates >= 1, f"Lp: n_updates must be at least 1, got {self.n_updates}")
        start = self.anneal_start_fraction
        _require(0 <= start < 1, f"Lp: anneal_start_fraction must be at least 0 and below 1, got {start}")


@explains_options
@dataclass(frozen=True, kw_only=True)
class Tanh:
    """``λ · mean of Σ_i tanh(c · v_i)``, an L0 that saturates smoothly (Anthropic, January 2025 update)."""

    is_variant: ClassVar[bool] = True
    coefficient: float = 0.5
    """λ, relative to inputs scaled to norm √d; the starting value where ``target_l0`` is given."""
    scale: float = 4.0
    """c."""
    target_l0: float | None = None
    """Wanted mean number of active latents; a controller then adjusts λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""
    weighting: Weighting = "decoder_norm"
    """What multiplies the activations."""

    def __post_init__(self) -> None:
        _check_sparsity(self)
        _require(self.scale > 0, f"Tanh: scale must be positive, got {self.scale}")


@explains_options
@dataclass(frozen=True, kw_only=True)
class L0:
    """``λ · mean over tokens of Σ_i 1[pre_i > θ_i]``, which trains JumpReLU's thresholds.

    Where no threshold is learned (ReLU, tanh-ReLU, Gated) θ is 0 and the straight-through estimate reaches ``pre``.
    """

    is_variant: ClassVar[bool] = True
    coefficient: float = 0.1
    """λ, relative to inputs scaled to norm √d; the starting value where ``target_l0`` is given."""
    target_l0: float | None = None
    """Wanted mean number of active latents; a controller then adjusts λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""
    bandwidth: float = 0.1
    """Width of the window around 0 where no threshold is learned; JumpReLU has its own."""

    def __post_init__(self) -> None:
        _check_sparsity(self)
        _require(self.bandwidth > 0, f"L0: bandwidth must be positive, got {self.bandwidth}")


@explains_options
@dataclass(frozen=True, kw_only=True)
class QuadraticL0:
    """``λ · mean over tokens of (2/L*) (L0 - L*)²`` for a wanted L0 of L* (Gemma Scope 2).

    A penalty, not a bound: reconstruction pulls the mean L0 above L* until the two balance (27 for an L* of 20 in one
    measured run with the default λ); a larger λ holds it closer and costs reconstruction.
    """

    is_variant: ClassVar[bool] = True
    target: float = 32.0
    """L*."""
    coefficient: float = 0.1
    """λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""
    bandwidth: float = 0.1
    """Width of the window around 0 where no threshold is learned; JumpReLU has its own."""

    def __post_init__(self) -> None:
        _check_sparsity(self)
        _require(self.target > 0, f"QuadraticL0: target must be positive, got {self.target}")


@explains_options
@dataclass(frozen=True, kw_only=True)
class RatioL0:
    """``λ · (L̄0/L* - 1)²`` with L̄0 the batch's mean L0, for a wanted L0 of L* (arXiv 2407.14435)."""

    is_variant: ClassVar[bool] = True
    target: float = 32.0
    """L*."""
    coefficient: float = 100.0
    """λ."""
    warmup_fraction: float = 0.05
    """Share of the run over which λ rises linearly from 0."""
    bandwidth: float = 0.1
    """Width of the window around 0 where no threshold is learned; JumpReLU has its own."""

    def __post_init__(self) -> None:
        _check_sparsity(self)
        _require(self.target > 0, f"RatioL0: target must be positive, got {self.target}")


Sparsity = Union[L1, Lp, Tanh, L0, QuadraticL0, RatioL0]
MagnitudeSparsity = Union[L1, Lp, Tanh]
CountSparsity = Union[L0, QuadraticL0, RatioL0]


@explains_options
@dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """Every prefix of the dictionary reconstructs by itself: ``Σ_g w_g · mean ‖y - ŷ_g‖²``, ŷ_g from latents below m_g.

    Source: Bussmann et al. 2025, arXiv 2503.17547.
    """

    is_variant: ClassVar[bool] = True
    widths: tuple[int, ...] | None = None
    """Sizes m_g of the prefixes, ascending; the whole dictionary is added where it is missing."""
    fractions: tuple[float, ...] | None = None
    """Instead, the shares of the dictionary that each prefix adds to the one before; they sum to one."""
    weights: tuple[float, ...] | None = None
    """w_g; all one by default."""

    def __post_init__(self) -> None:
        _require((self.widths is None) != (self.fractions is None), "Matryoshka: give widths or fractions, one of them")
        if self.fractions is not None:
            _require(
                all(f > 0 for f in self.fractions), f"Matryoshka: fractions must be positive, got {self.fractions}"
            )
            total = sum(self.fractions)
            _require(abs(total - 1) < 1e-6, f"Matryoshka: fractions must sum to 1, got {total:g}")
        _check_ascending("Matryoshka: widths", self.widths or ())
        _check_weights("Matryoshka", self.weights)

    def bounds(self, d_sae: int) -> tuple[int, ...]:
        """The prefix sizes in a dictionary of ``d_sae`` latents, the last one ``d_sae``."""
        if self.fractions is not None:
            sums = [sum(self.fractions[: i + 1]) for i in range(len(self.fractions))]
            bounds = tuple(max(1, round(total * d_sae)) for total in sums)
        else:
            bounds = self.widths or ()
            bounds = bounds if bounds and bounds[-1] == d_sae else (*bounds, d_sae)
        _check_ascending(f"Matryoshka: the prefixes of {d_sae} latents", bounds)
        _require(bounds[-1] == d_sae, f"Matryoshka: prefix {bounds[-1]} exceeds the dictionary's {d_sae} latents")
        return bounds


@explains_options
@dataclass(frozen=True, kw_only=True)
class HierarchicalTopK:
    """One dictionary for many budgets: ``Σ_g w_g · mean ‖y - ŷ_g‖²``, ŷ_g from a token's j_g largest activations.

    Source: Balagansky et al. 2025, arXiv 2505.24473.
    """

    is_variant: ClassVar[bool] = True
    budgets: tuple[int, ...] = (8, 16, 32)
    """j_g, ascending; the last level takes all active latents."""
    weights: tuple[float, ...] | None = None
    """w_g; 1/G each by default."""

    def __post_init__(self) -> None:
        _require(len(self.budgets) > 0, "HierarchicalTopK: give at least one budget")
        _check_ascending("HierarchicalTopK: budgets", self.budgets)
        _check_weights("HierarchicalTopK", self.weights)
        if self.weights is not None:
            count = len(self.weights)
            _require(count == len(self.budgets), f"HierarchicalTopK: {count} weights for {len(self.budgets)} budgets")


LevelsConfig = Union[Matryoshka, HierarchicalTopK]


@explains_options
@dataclass(frozen=True, kw_only=True)
class AuxK(TermConfig):
    """Dead latents learn to predict the error: ``α · mean ‖e - ê‖²`` with ê from the ``k`` strongest dead latents.

    A pre-activation below zero counts as 0 in ê and still gets the gradient that a positive one would
    (``straight_through``); without it a latent whose pre-activations are all negative stays dead. Only dead latents
    take part, so that α trades nothing. The paper has α = 1/32, ``k`` half the output width and no such gradient:
    that leaves several times as many dead.
    Source: Gao et al. 2024, arXiv 2406.04093, appendix A.2; the straight-through gradient is ours.
    """

    is_variant: ClassVar[bool] = True
    name: ClassVar[str] = "auxk"
    coefficient: float = 1.0
    """α, relative to the reconstruction loss."""
    k: int | None = None
    """Dead latents that take part per token; a sixteenth of the output width, at least 4, by default."""
    dead_after_tokens: int | None = None
    """A latent is dead after so many tokens without firing; a tenth of the run, at most 10 million, by default."""
    straight_through: bool = True
    """Whether pre-activations below zero get a gradient."""
    normalised: bool = False
    """Whether the term is divided by the error's variance over the batch, as in the paper's code."""

    def __post_init__(self) -> None:
        _check_revive(self)
        _require(self.k is None or self.k >= 1, f"AuxK: k must be at least 1, got {self.k}")

    def build(self, context: TermContext) -> Term:
        from monosema.training.revive import RevivalTerm

        return RevivalTerm(self)


@explains_options
@dataclass(frozen=True, kw_only=True)
class GhostGradients(TermConfig):
    """Dead latents learn through ``exp(pre)``, scaled to half the error's norm and to the reconstruction loss.

    Source: Jermyn and Templeton 2024, Anthropic, January update.
    """

    is_variant: ClassVar[bool] = True
    name: ClassVar[str] = "ghost"
    coefficient: float = 1.0
    """Weight of the term, which has the size of the reconstruction loss."""
    dead_after_tokens: int | None = None
    """A latent is dead after so many tokens without firing; a tenth of the run, at most 10 million, by default."""

    def __post_init__(self) -> None:
        _check_revive(self)

    def build(self, context: TermContext) -> Term:
        from monosema.training.revive import RevivalTerm

        return RevivalTerm(self)


@explains_options
@dataclass(frozen=True, kw_only=True)
class PreActivationLoss(TermConfig):
    """``α · mean over tokens of Σ_i ReLU(θ_i - pre_i) ‖W_dec_i‖`` (Anthropic, January 2025 update)."""

    is_variant: ClassVar[bool] = True
    name: ClassVar[str] = "pre_activation"
    coefficient: float = 3e-6
    """α."""
    dead_only: bool = False
    """Whether only dead latents count, as in SAELens."""
    dead_after_tokens: int | None = None
    """A latent is dead after so many tokens without firing; a tenth of the run, at most 10 million, by default."""

    def __post_init__(self) -> None:
        _check_revive(self)

    def build(self, context: TermContext) -> Term:
        from monosema.training.revive import RevivalTerm

        return RevivalTerm(self)


@explains_options
@dataclass(frozen=True, kw_only=True)
class Resample:
    """Dead latents are replaced by badly reconstructed inputs, drawn with probability ∝ their squared loss.

    Encoder row ``scale · mean norm of the living ones`` along the input's direction, decoder row along the target's,
    bias zero, optimiser moments zero; the learning rate then rises again. Source: Bricken et al. 2023.

    ``Resample(preset="anthropic")`` takes a published recipe's values for whatever is not given; ``rule`` has them all.
    """

    is_variant: ClassVar[bool] = True
    preset: ResamplePreset | None = None
    """Whose values stand for what is not given (``training/resample_presets.py`` cites each); ours by default."""
    every_tokens: int | None = None
    """Tokens between resamplings; an eighth of the run by default. None happens in the last quarter of the run."""
    n_times: int | None = None
    """Resamplings at most; as many as fit by default."""
    by: ResampleBy | None = None
    """The loss they are drawn by: the input's squared error (``error``, the default), or the language model's increase
    in loss (``model_loss``)."""
    power: float | None = None
    """The power of the loss that probabilities are proportional to; 2 by default."""
    dead_after_tokens: int | None = None
    """Dead by silence: replaced after so many tokens without firing; half of ``every_tokens`` by default."""
    dead_below_density: float | None = None
    """Dead by rate, instead: a latent is replaced where it fires on a smaller share of the window's tokens."""
    n_candidates: int | None = None
    """Inputs drawn from, of the current chunk; 16,384 by default."""
    n_contexts: int | None = None
    """Contexts whose tokens are drawn from, for ``by="model_loss"``; 64 by default."""
    one_per_context: bool | None = None
    """Whether each of them offers one token, drawn ∝ its loss increase, rather than all (the default)."""
    scale: float | None = None
    """Norm of a new encoder row, relative to the mean of the living ones; 0.2 by default."""
    rewarm_tokens: int | None = None
    """Tokens over which the learning rate rises again; by default given by ``rewarm_fraction``."""
    rewarm_fraction: float | None = None
    """The same as a share of the run; 0.02 by default."""
    rewarm_floor: float | None = None
    """Share of the learning rate that it rises from; 0 by default."""

    def __post_init__(self) -> None:
        for name in ("every_tokens", "n_times", "dead_after_tokens", "n_candidates", "n_contexts"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"Resample: {name} must be at least 1, got {value}")
        for name in ("scale", "power"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"Resample: {name} must be positive, got {value}")
        for name in ("rewarm_fraction", "rewarm_floor"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, f"Resample: {name} must be between 0 and 1, got {value}")
        tokens = self.rewarm_tokens
        _require(tokens is None or tokens >= 0, f"Resample: rewarm_tokens must not be negative, got {tokens}")
        for one, other in (("dead_after_tokens", "dead_below_density"), ("rewarm_tokens", "rewarm_fraction")):
            both = getattr(self, one) is not None and getattr(self, other) is not None
            _require(not both, f"Resample: give {one} or {other}, not both")
        presets = tuple(RESAMPLE_PRESETS)
        _require(
            self.preset is None or self.preset in presets,
            f"Resample: preset must be one of {', '.join(presets)}, got {self.preset!r}",
        )

    @property
    def rule(self) -> ResampleRule:
        """Every value: those given, then the preset's, then ours."""
        base = ResampleRule() if self.preset is None else RESAMPLE_PRESETS[self.preset]
        if self.dead_below_density is not None:  # one criterion of death, one length of the rise: not the preset's too
            base = replace(base, dead_after_tokens=None)
        if self.rewarm_fraction is not None:
            base = replace(base, rewarm_tokens=None)
        given = {each.name: getattr(self, each.name) for each in fields(ResampleRule)}
        return replace(base, **{name: value for name, value in given.items() if value is not None})


Revive = Union[AuxK, GhostGradients, PreActivationLoss, Resample]


@explains_options
@dataclass(frozen=True, kw_only=True)
class SparseConnection(TermConfig):
    """``λ · mean over i of Σ_j |⟨d_i, W_dec_j⟩|``: a transcoder that connects sparsely to a given SAE's latents."""

    name: ClassVar[str] = "sparse_connection"
    path: str
    """Folder or repository of the SAE, which reads (or writes) where the transcoder writes."""
    coefficient: float = 1e-3
    """λ."""
    directions: Literal["encoder", "decoder"] = "encoder"
    """The SAE's directions d_i."""

    def __post_init__(self) -> None:
        _require(self.coefficient > 0, f"SparseConnection: coefficient must be positive, got {self.coefficient}")

    def build(self, context: TermContext) -> Term:
        from monosema.training.connection import ConnectionTerm

        return ConnectionTerm.of(self, context)


@explains_options
@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """A last phase of the run in which only some weights are trained, on the reconstruction alone."""

    tokens: int
    """Tokens of the phase, beyond ``TrainingConfig.tokens``."""
    weights: Literal["scale", "decoder", "unrotated_decoder", "all"] = "decoder"
    """Trained: a scale of each decoder row; decoder and its bias; row scales and bias; or everything, with the whole
    objective."""
    lr: float | None = None
    """Learning rate at the start of the phase, falling linearly to zero; a tenth of the run's by default."""

    def __post_init__(self) -> None:
        _require(self.tokens >= 1, f"FineTuning: tokens must be at least 1, got {self.tokens}")
        _require(self.lr is None or self.lr > 0, f"FineTuning: lr must be positive, got {self.lr}")


def _check_sparsity(config: Sparsity) -> None:
    name = type(config).__name__
    _require(config.coefficient > 0, f"{name}: coefficient must be positive, got {config.coefficient}")
    target = getattr(config, "target_l0", None)
    _require(target is None or target > 0, f"{name}: target_l0 must be positive, got {target}")
    _require(0 <= config.warmup_fraction <= 1, f"{name}: warmup_fraction must be between 0 and 1")


def _check_revive(config: AuxK | GhostGradients | PreActivationLoss) -> None:
    name = type(config).__name__
    _require(config.coefficient >= 0, f"{name}: coefficient must not be negative, got {config.coefficient}")
    after = config.dead_after_tokens
    _require(after is None or after >= 1, f"{name}: dead_after_tokens must be at least 1, got {after}")


def _check_ascending(what: str, sizes: tuple[int, ...]) -> None:
    rising = all(a < b for a, b in itertools.pairwise(sizes))
    _require(rising and all(size >= 1 for size in sizes), f"{what} must be at least 1 and ascend, got {sizes}")


def _check_weights(name: str, weights: tuple[float, ...] | None) -> None:
    good = weights is None or (all(w >= 0 for w in weights) and any(w > 0 for w in weights))
    _require(good, f"{name}: weights must not be negative, and not all zero, got {weights}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
