"""Which rule an activation is saved under, and which activation computes a rule that a file names."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from monosema.coders import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, SparseCoder, TanhReLU, TopK
from monosema.coders.activations.base import Activation
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.coders.config import ActivationConfig
from monosema.core.config import from_plain, to_plain
from monosema.core.errors import ConfigError, FileError, unknown_name
from monosema.formats import PartSpec, Rule, TrainedActivation

_UNFIT = "the file's tensors do not fit its config"


def saved_rule(coder: SparseCoder) -> Rule | None:
    """The rule that ``coder`` infers by; None for an activation that names none, which only our own format holds.

    Raises ``ConfigError`` where the rule needs a threshold that is not known yet.
    """
    config, own = coder.config.activation, coder.activation
    match config:
        case ReLU():
            return Rule(name="relu")
        case TanhReLU():
            return Rule(name="tanhrelu")
        case Gated():
            return Rule(name="gated", tensors=_parameters(own))
        case JumpReLU():
            return Rule(name="jumprelu", tensors=_parameters(own))
        case TopK(inference="topk"):
            return Rule(name="topk", k=config.k, by_decoder_norm=config.weight_by_decoder_norm)
        case AbsTopK(inference="topk"):
            return Rule(name="abstopk", k=config.k, by_decoder_norm=config.weight_by_decoder_norm)
        case BatchTopK(inference="topk"):
            return Rule(name="batchtopk", k=config.k, by_decoder_norm=config.weight_by_decoder_norm)
        case TopK() | AbsTopK() | BatchTopK():
            return Rule(
                name="absthreshold" if isinstance(config, AbsTopK) else "jumprelu",
                by_decoder_norm=config.weight_by_decoder_norm,
                tensors={"threshold": torch.full((coder.d_sae,), _known_threshold(own), dtype=coder.dtype)},
            )
        case _:  # of another package
            return None


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
    match rule.name:
        case "relu":
            return ReLU()
        case "tanhrelu":
            return TanhReLU()
        case "gated":
            return Gated()
        case "topk":
            plain_topk = TopK(k=_k(rule), weight_by_decoder_norm=rule.by_decoder_norm)
            return trained if isinstance(trained, TopK) else plain_topk
        case "abstopk":
            plain_abstopk = AbsTopK(k=_k(rule), weight_by_decoder_norm=rule.by_decoder_norm)
            return trained if isinstance(trained, AbsTopK) else plain_abstopk
        case "jumprelu":
            threshold = _tensor(rule, "threshold")
            if isinstance(trained, (BatchTopK, TopK)) and bool((threshold == threshold[0]).all()):
                return trained
            return trained if isinstance(trained, JumpReLU) else JumpReLU()
        case _:
            if trained is not None:
                return trained
            known = ("relu", "tanhrelu", "gated", "topk", "abstopk", "jumprelu")
            raise FileError(f"{unknown_name('rule of latents', rule.name, known)}")


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


def _parameters(own: Activation) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in own.named_parameters()}


def _known_threshold(own: Activation) -> float:
    assert isinstance(own, FixedCountActivation)
    if own.threshold is None:
        name = type(own.config).__name__
        raise ConfigError(f"this {name} coder has no threshold yet: train it first, or set_threshold()")
    return own.threshold


def _k(rule: Rule) -> int:
    if rule.k is None or int(rule.k) != rule.k:
        raise FileError(f"a {rule.name} dictionary must state k as a whole number, got {rule.k}")
    return int(rule.k)


def _tensor(rule: Rule, name: str) -> Tensor:
    if name not in rule.tensors:
        raise FileError(f"{_UNFIT}: the rule {rule.name!r} lacks {name}")
    return rule.tensors[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ActivationField:
    activation: ActivationConfig


def _from_plain(plain: Any) -> ActivationConfig:
    return from_plain(_ActivationField, {"activation": plain}).activation
