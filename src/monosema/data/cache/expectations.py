"""What a cache was made from, held against what its reader says it must be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from monosema.core.errors import ConfigError
from monosema.data.named_models import NamedModels
from monosema.models import LanguageModel

ExpectedModel = LanguageModel | Mapping[str, LanguageModel] | str
_FACTS = ("name", "commit", "class", "model_type", "d_model", "n_layers")
"""Of a model's record: what makes it another model. Devices, types and versions do not."""


def check_model(stream: Mapping[str, Any], model: ExpectedModel, where: str) -> None:
    """Raise ``ConfigError`` where the cache with the record ``stream`` was not made from ``model``."""
    if not (stream.get("model") or stream.get("models")):
        raise ConfigError(f"{where} does not record the model it was made from; leave out model=")
    if isinstance(model, str):
        recorded = stream.get("model") or {}
        if not {os.path.abspath(model), model} & {recorded.get("name"), recorded.get("source")}:
            names = [each.get("name") for each in (stream.get("models") or {"": recorded}).values()]
            raise ConfigError(f"{where} was made from {' and '.join(map(repr, names))}, not from {model!r}; {_ADVICE}")
        return
    different = model_differences(stream, NamedModels(model).record())
    if different:
        raise ConfigError(f"{where} was made from another model ({'; '.join(different)}); {_ADVICE}")


def model_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what the models of two records of streams differ; nothing where one does not say."""
    ones, others = (
        record.get("models") or ({"": record["model"]} if record.get("model") else {}) for record in (one, other)
    )
    if not ones or not others:
        return []
    if set(ones) != set(others):
        return [f"models: {', '.join(sorted(ones)) or 'one'} -> {', '.join(sorted(others)) or 'one'}"]
    return [
        f"{key}{'.' if key else ''}{fact}: {ones[key][fact]} -> {others[key][fact]}"
        for key in sorted(ones)
        for fact in _FACTS
        if None not in (ones[key].get(fact), others[key].get(fact)) and ones[key][fact] != others[key][fact]
    ]


_ADVICE = "name that one, or make a cache of this one"
