"""The registered activations by name, and which of them a text or a saved rule means; without torch."""

from __future__ import annotations

from collections.abc import Mapping

from monosema.coders.activations import configs as configs  # registers the built-in ones
from monosema.coders.activations.family import ActivationConfig, FixedCount, SavedRule
from monosema.core.errors import ConfigError, FileError
from monosema.core.spelling import spelled_out


def activation_kinds() -> Mapping[str, type[ActivationConfig]]:
    """The registered activations by name, built-in ones first."""
    return ActivationConfig.kinds()


def usual_k(width: int) -> int:
    """The k of a dictionary of ``width`` latents where none is given."""
    return max(1, min(32, width))


def activation_named(text: str, most: int) -> ActivationConfig:
    """The activation that ``text`` names: ``"topk"``, ``"TopK(16)"``, ``"relu"``; of those with a k, ``usual_k`` of
    ``most`` latents by default. Raises ``ConfigError`` for another name."""
    kinds = activation_kinds()
    plain = spelled_out(text, kinds)
    if not isinstance(plain, Mapping):
        raise ConfigError(f"activation: expected one of {', '.join(kinds)} (ms.TopK(16) or 'topk'), got {text!r:.80}")
    kind = kinds[plain["kind"]]
    default = {"k": usual_k(most)} if issubclass(kind, FixedCount) else {}
    return kind(**{**default, **{key: plain[key] for key in plain if key != "kind"}})


def activation_of(rule: SavedRule, trained: ActivationConfig | None) -> ActivationConfig:
    """The activation of a saved dictionary that infers by ``rule``: the one it was trained with, where that infers so.

    Raises ``FileError`` for a rule by which no registered activation infers.
    """
    if trained is not None and trained.infers_by(rule):
        return trained
    for kind in activation_kinds().values():
        made = kind.of_rule(rule)
        if made is not None:
            return made
    raise FileError(
        f"the file names the rule {rule.name!r}, by which no activation infers (known activations: "
        f"{', '.join(activation_kinds())}). Register the activation that it belongs to before you load the file"
    )
