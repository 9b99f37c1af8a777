"""Model, text and stream again, from what a dictionary recorded of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monosema.core.errors import ConfigError, FileError
from monosema.data.tokens import IN_MEMORY, Tokens, load_tokens
from monosema.models import LanguageModel, load_model

logger = logging.getLogger("monosema.data.rebuild")

MODEL_OPTIONS = (
    "source",
    "revision",
    "dtype",
    "device",
    "device_map",
    "trust_remote_code",
    "tokenizer",
    "model_kwargs",
    "forward_kwargs",
)
TOKEN_OPTIONS = (
    "source",
    "context_size",
    "heldout_fraction",
    "exclude_special_tokens",
    "column",
    "max_documents",
    "split",
    "config_name",
)
STREAM_OPTIONS = (
    "hook_names",
    "targets",
    "batch_size",
    "seed",
    "epochs",
    "chunk_contexts",
    "model_batch_size",
    "dtype",
)


def recorded_options(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What ``load_model``, ``load_tokens`` and ``ActivationStream`` were given: ``model``, ``tokens``, ``stream``.

    Raises ``FileError`` where the dictionary records no model or text.
    """
    model, tokens = metadata.get("model"), metadata.get("tokens")
    if not model or not tokens or "source" not in tokens:
        raise FileError("the dictionary does not record the model and text it was trained with; load them yourself")
    model = {**model, "dtype": model.get("requested_dtype")}
    dataset = tokens.get("options") or {}
    tokens = {**tokens, "split": dataset.get("split"), "config_name": dataset.get("name")}
    return {
        "model": {name: model[name] for name in MODEL_OPTIONS if model.get(name) is not None},
        "tokens": {name: tokens[name] for name in TOKEN_OPTIONS if tokens.get(name) is not None},
        "stream": {name: metadata[name] for name in STREAM_OPTIONS if metadata.get(name) is not None},
    }


def override(recorded: Mapping[str, Any], overrides: Mapping[str, Any], part: str) -> dict[str, Any]:
    """``recorded`` with ``overrides`` laid over it; each one that changes something is logged with both values."""
    for name, value in overrides.items():
        if recorded.get(name) != value:
            logger.info("%s.%s overridden: %r -> %r", part, name, recorded.get(name), value)
    return {**recorded, **overrides}


def model_again(options: Mapping[str, Any]) -> LanguageModel:
    """``load_model`` with recorded options."""
    if options.get("source") == "model in memory":
        raise ConfigError("it was trained with a model object in memory; hand one in, or name a model")
    return load_model(options["source"], **{name: value for name, value in options.items() if name != "source"})


def tokens_again(options: Mapping[str, Any], model: LanguageModel) -> Tokens:
    """``load_tokens`` with recorded options and the model's tokenizer."""
    if options.get("source") == IN_MEMORY:
        raise ConfigError("it was trained on text in memory; hand the tokens in, or name a text")
    rest = {name: value for name, value in options.items() if name != "source"}
    return load_tokens(options["source"], model.tokenizer, **rest)
