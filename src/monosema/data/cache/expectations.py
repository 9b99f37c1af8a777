"""What a cache was made from, held against what its reader says it must be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from monosema.core.errors import ConfigError
from monosema.data.named_models import NamedModels
from monosema.models import LanguageModel
from monosema.models.fingerprint import comparable_dtypes

ExpectedModel = LanguageModel | Mapping[str, LanguageModel] | str
_FACTS = ("name", "commit", "class", "model_type", "d_model", "n_layers")
"""Of a model's record: what makes it another model. Devices, types and versions do not."""


def check_model(stream: Mapping[str, Any], model: ExpectedModel, where: str) -> None:
    """Raise ``ConfigError`` where the cache with the record ``stream`` was not made from ``model``."""
    if not (stream.get("model") or stream.get("models")):
        raise ConfigError(f"{where} does not record the model it was made from; leave out model=")
    if isinstance(model, str):
        recorded = stream.get("model") or {}
        if not {os.path.abspath(os.path.expanduser(model)), model} & {recorded.get("name"), recorded.get("source")}:
            names = [each.get("name") for each in (stream.get("models") or {"": recorded}).values()]
            raise ConfigError(f"{where} was made from {' and '.join(map(repr, names))}, not from {model!r}; {_ADVICE}")
        return
    different = model_differences(stream, NamedModels(model).record())
    if different:
        raise ConfigError(f"{where} was made from another model ({'; '.join(different)}); {_ADVICE}")


def model_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what the models of two records of streams differ; nothing where one does not say.

    Models whose weights have one fingerprint are the same, whatever they are called and wherever they lie.
    """
    ones, others = (
        record.get("models") or ({"": record["model"]} if record.get("model") else {}) for record in (one, other)
    )
    if not ones or not others:
        return []
    if set(ones) != set(others):
        return [f"models: {', '.join(sorted(ones)) or 'one'} -> {', '.join(sorted(others)) or 'one'}"]
    return [
        f"{key}{'.' if key else ''}{difference}"
        for key in sorted(ones)
        for difference in record_differences(ones[key], others[key])
    ]


def record_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two records of one model each (``LanguageModel.record``) differ; nothing where one does not say."""
    weights = one.get("fingerprint"), other.get("fingerprint")
    compared = None not in weights and comparable_dtypes(one.get("dtype"), other.get("dtype"))
    if compared and weights[0] == weights[1]:
        return []
    differences = [
        f"{fact}: {one[fact]} -> {other[fact]}"
        for fact in _FACTS
        if None not in (one.get(fact), other.get(fact)) and one[fact] != other[fact]
    ]
    return [*differences, f"fingerprint of the weights: {weights[0]} -> {weights[1]}"] if compared else differences


_ADVICE = "name that one, or make a cache of this one"
