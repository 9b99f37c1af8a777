"""Model, text and stream again, from what a dictionary recorded of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monosema.core.config import from_plain
from monosema.core.errors import ConfigError, FileError
from monosema.data.config import IN_MEMORY, SOURCE_OPTIONS, Mixture, TextSource
from monosema.data.loading import load_tokens
from monosema.data.packing_config import Packing, Positions
from monosema.data.tokens import Tokens
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
    *SOURCE_OPTIONS,
    "mixture",
    "when_dry",
    "n_processes",
    "packing",
    "positions",
    "attend_across_documents",
    "in_memory",
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
    "autocast",
    "compile",
    "outlier_norm_multiple",
)


def recorded_options(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What ``load_model``, ``load_tokens`` and ``ActivationStream`` were given: ``model``, ``tokens``, ``stream``.

    A stream over several models has ``models``, the options of each by its name, in place of ``model``. Raises
    ``FileError`` where the dictionary records no model or text.
    """
    model, models, tokens = metadata.get("model"), several_models(metadata), metadata.get("tokens")
    if not (model or models) or not tokens or "source" not in tokens:
        raise FileError("the dictionary does not record the model and text it was trained with; load them yourself")
    dataset = tokens.get("options") or {}
    tokens = {**tokens, "split": None, "config_name": dataset.get("name"), **dataset}
    if tokens.get("mixture"):
        del tokens["source"]
    return {
        **({"models": {key: _model_options(each) for key, each in models.items()}} if models else {}),
        **({"model": _model_options(model)} if model and not models else {}),
        "tokens": {name: tokens[name] for name in TOKEN_OPTIONS if tokens.get(name) is not None},
        "stream": {
            **{name: metadata[name] for name in STREAM_OPTIONS if metadata.get(name) is not None},
            "outlier_norm_multiple": metadata.get("outlier_norm_multiple"),  # None, or not recorded: no row left out
        },
    }


def several_models(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The records, by name, of the models that the recorded sites belong to; empty where they are one model's."""
    models = metadata.get("models") or {}
    # A dictionary trained further on another stream may hold both records; its sites are those of the last one.
    named = all(name.partition(":")[0] in models for name in metadata.get("hook_names") or ())
    return dict(models) if named else {}


def _model_options(record: Mapping[str, Any]) -> dict[str, Any]:
    given = {**record, "dtype": record.get("requested_dtype")}
    return {name: given[name] for name in MODEL_OPTIONS if given.get(name) is not None}


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


def models_again(recorded: Mapping[str, Any]) -> LanguageModel | dict[str, LanguageModel]:
    """The model of ``recorded_options``, or its models by name."""
    if "models" not in recorded:
        return model_again(recorded["model"])
    return {key: model_again(options) for key, options in recorded["models"].items()}


def tokens_again(options: Mapping[str, Any], model: LanguageModel) -> Tokens:
    """``load_tokens`` with recorded options and the model's tokenizer; a ``source`` replaces a ``mixture``."""
    rest = {name: value for name, value in options.items() if name not in ("source", "mixture", "when_dry")}
    source: str | Mixture
    if "source" in options:
        source, sources = options["source"], [options["source"]]
    else:
        parts = {name: from_plain(TextSource, part) for name, part in options["mixture"].items()}
        source, sources = Mixture(parts=parts, when_dry=options["when_dry"]), [each.source for each in parts.values()]
    if IN_MEMORY in sources:
        raise ConfigError("it was trained on text in memory; hand the tokens in, or name a text")
    for name, config in (("packing", Packing), ("positions", Positions)):
        if name in rest:
            rest[name] = from_plain(config, rest[name])
    return load_tokens(source, model.tokenizer, **rest)
