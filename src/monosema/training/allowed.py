"""Which sparsity losses go with which activation: the table that tests and refusals are made from."""

from __future__ import annotations

from dataclasses import dataclass

from monosema.coders.config import ActivationConfig
from monosema.core.errors import ConfigError
from monosema.training.config import L0, L1, Sparsity


@dataclass(frozen=True)
class Rule:
    """What one activation allows."""

    default: Sparsity | None
    """The sparsity loss used when none is given."""
    refused: dict[str, str]
    """Sparsity losses refused, with the reason."""


_FIXED = "its number of active latents is fixed by k already"

RULES: dict[str, Rule] = {
    "TopK": Rule(None, {"L1": _FIXED, "L0": _FIXED}),
    "BatchTopK": Rule(None, {"L1": _FIXED, "L0": _FIXED}),
    "ReLU": Rule(L1(target_l0=32), {"L0": "a count has no gradient without a threshold; use L1, or JumpReLU"}),
    "Gated": Rule(L1(target_l0=32), {"L0": "its gate learns from ReLU(π); use L1"}),
    "JumpReLU": Rule(L0(target_l0=32), {}),
}


def resolve_sparsity(activation: ActivationConfig, sparsity: Sparsity | None) -> Sparsity | None:
    """The sparsity loss to use; ``ConfigError`` naming both where the two do not go together."""
    rule = RULES[type(activation).__name__]
    if sparsity is None:
        return rule.default
    reason = rule.refused.get(type(sparsity).__name__)
    if reason is not None:
        pair = f"sparsity {type(sparsity).__name__} cannot be used with {type(activation).__name__}"
        raise ConfigError(f"{pair}: {reason}")
    return sparsity
