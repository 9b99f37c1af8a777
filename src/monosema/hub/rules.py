"""Which rule an activation is saved under, and which activation computes a rule that a file names."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from monosema.coders import SparseCoder
from monosema.coders.activations import registry
from monosema.coders.activations.base import Activation
from monosema.coders.activations.family import SavedRule
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.coders.config import ActivationConfig
from monosema.core.config import from_plain, to_plain
from monosema.core.errors import FileError
from monosema.formats import PartSpec, Rule, TrainedActivation

_UNFIT = "the file's tensors do not fit its config"


def saved_rule(coder: SparseCoder) -> Rule | None:
    """The rule that ``coder`` infers by; None for an activation that names none, which only our own format holds.

    Raises ``ConfigError`` where the rule needs a threshold that is not known yet.
    """
    own = coder.activation.saved_rule(coder.dtype)
    if own is None:
        return None
    return Rule(name=own.name, k=own.k, by_decoder_norm=own.by_decoder_norm, tensors=own.tensors)


def saved_activation(coder: SparseCoder) -> TrainedActivation:
    """The activation that ``coder`` was trained with."""
    own = coder.activation
    return TrainedActivation(
        config=to_plain(coder.config.activation),
        tensors={name: tensor.detach() for name, tensor in own.state_dict().items()},
        threshold=own.threshold if isinstance(own, FixedCountActivation) else None,
    )


def activation_of(part: PartSpec) -> ActivationConfig:
    """The activation that computes what ``part`` says: the one it was trained with where that infers by the part's
    rule, else the one that trains by the rule. Raises ``FileError`` for a rule that no activation has."""
    trained = None if part.trained is None else _from_plain(part.trained.config)
    rule = part.rule
    if rule is None:
        if trained is None:
            raise FileError("the file names neither the rule by which latents become active nor an activation")
        return trained
    own = SavedRule(name=rule.name, k=rule.k, by_decoder_norm=rule.by_decoder_norm, tensors=rule.tensors)
    return registry.activation_of(own, trained)


@torch.no_grad()
def fill_activation_(own: Activation, part: PartSpec) -> None:
    """Give an activation that ``activation_of(part)`` built the values of ``part``, in place."""
    trained, rule = part.trained, part.rule
    if trained is not None and trained.tensors is not None:
        _load_(own, trained.tensors)
        return
    assert rule is not None
    for name, parameter in own.named_parameters():
        parameter.copy_(_tensor(rule, name))
    if isinstance(own, FixedCountActivation):
        if "threshold" in rule.tensors:
            own.set_threshold(float(rule.tensors["threshold"][0]))
        elif trained is not None and trained.threshold is not None:
            own.set_threshold(trained.threshold)


def _load_(own: Activation, tensors: Any) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in own.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise FileError(f"{_UNFIT}: {', '.join(f'activation.{name}' for name in different[:5])}")
    own.load_state_dict(dict(tensors))


def _tensor(rule: Rule, name: str) -> Tensor:
    if name not in rule.tensors:
        raise FileError(f"{_UNFIT}: the rule {rule.name!r} lacks {name}")
    return rule.tensors[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ActivationField:
    activation: ActivationConfig


def _from_plain(plain: Any) -> ActivationConfig:
    return from_plain(_ActivationField, {"activation": plain}).activation
