"""What goes with what: the table that refusals, tests and ``docs/allowed.md`` are made from.

A combination is a variant, an activation, a sparsity loss, nested levels, a policy for dead latents and a scaling of
tokens by their own size. Each rule names one pair that is refused and why; everything else is allowed. Tokens are
scaled before anything else sees them, so that scaling is combined with variants and activations only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from monosema.coders.activations.family import ActivationConfig, FixedCount
from monosema.coders.activations.registry import activation_kinds
from monosema.core.config import from_plain
from monosema.core.errors import ConfigError
from monosema.training.config import PER_TOKEN
from monosema.training.terms import Sparsity

VARIANTS = ("SAE", "Transcoder", "SkipTranscoder", "Crosscoder", "CrossLayerTranscoder")
SPARSITIES = ("None", "L1", "Lp", "Tanh", "L0", "QuadraticL0", "RatioL0")
LEVELS = ("None", "Matryoshka", "HierarchicalTopK")
POLICIES = ("None", "AuxK", "GhostGradients", "PreActivationLoss", "Resample")
TOKEN_SCALINGS = ("none", *PER_TOKEN)

_FIXED = "its number of active latents is fixed by k already; a loss on magnitudes (L1, Lp, Tanh) is possible"
_COUNTS = ("L0", "QuadraticL0", "RatioL0")
_UNSCALED = "the skip connection would read tokens that are not scaled; use a linear input_scaling"


def activations() -> tuple[str, ...]:
    """The registered activations."""
    return tuple(activation_kinds())


def refused() -> dict[tuple[str, str], str]:
    """Pairs that are refused, with the reason."""
    fixed = [name for name, kind in activation_kinds().items() if issubclass(kind, FixedCount)]
    return {(activation, sparsity): _FIXED for activation in fixed for sparsity in _COUNTS} | {
        ("SkipTranscoder", scaling): _UNSCALED for scaling in PER_TOKEN
    }


@dataclass(frozen=True)
class Combination:
    """One row of the table."""

    variant: str
    activation: str
    sparsity: str
    levels: str
    policy: str
    token_scaling: str = "none"

    @property
    def refusal(self) -> str | None:
        """Why it is refused, or None."""
        names = (self.variant, self.activation, self.sparsity, self.levels, self.policy, self.token_scaling)
        for pair, reason in refused().items():
            if set(pair) <= set(names):
                return f"{pair[0]} and {pair[1]} cannot be used together: {reason}"
        return None


def combinations() -> Iterator[Combination]:
    """Every combination there is, allowed and refused."""
    for names in product(VARIANTS, activations(), SPARSITIES, LEVELS, POLICIES):
        yield Combination(*names)
    for variant, activation, scaling in product(VARIANTS, activations(), PER_TOKEN):
        yield Combination(variant, activation, "None", "None", "None", scaling)


def resolve_sparsity(activation: ActivationConfig, sparsity: Sparsity | None) -> Sparsity | None:
    """The sparsity loss to use where ``None`` stands for the activation's own."""
    return default_sparsity(type(activation)) if sparsity is None else sparsity


def default_sparsity(kind: type[ActivationConfig]) -> Sparsity | None:
    """The sparsity loss of an activation where none is given."""
    return from_plain(_SparsityField, {"sparsity": kind.default_sparsity}).sparsity


def check_combination(
    variant: str,
    activation: object,
    sparsity: object | None,
    levels: object | None,
    policy: object | None,
    token_scaling: str,
) -> None:
    """Raise ``ConfigError`` naming both options where two of them do not go together."""
    names = (type(each).__name__ if each is not None else "None" for each in (activation, sparsity, levels, policy))
    refusal = Combination(*(variant, *names, token_scaling)).refusal
    if refusal is not None:
        raise ConfigError(refusal)


@dataclass(frozen=True)
class _SparsityField:
    sparsity: Sparsity | None
