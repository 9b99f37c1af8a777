"""Model, text and stream again, from what a dictionary recorded of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, cast, get_type_hints

from monosema.core import foreign
from monosema.core.config import from_plain
from monosema.core.errors import FileError
from monosema.core.logs import get_logger
from monosema.core.option_fields import marked
from monosema.data.config import Mixture, TextSource, TokenOptions, load_tokens
from monosema.data.config import refuse_unnamed as refuse_unnamed_text
from monosema.data.stream_config import StreamOptions
from monosema.data.tokens import Tokens
from monosema.models import LanguageModel, load_model
from monosema.models.config import ModelOptions
from monosema.models.config import refuse_unnamed as refuse_unnamed_model

logger = get_logger("monosema.data.rebuild")

PARTS: Mapping[str, type] = {"model": ModelOptions, "tokens": TokenOptions, "stream": StreamOptions}
"""The parts of a record, each with the config that declares its options."""


def recorded_options(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a file records of ``model``, ``tokens`` and ``stream``, as far as a file may say it (``core/foreign.py``).

    What is used of it goes through ``override``. A stream over several models has ``models``, the options of each by
    its name, in place of ``model``. Raises ``FileError`` where the dictionary records no model or text.
    """
    parts = described_options(metadata)
    several = {key: _listed("model", each) for key, each in parts.get("models", {}).items()}
    one = {part: _listed(part, each) for part, each in parts.items() if part != "models"}
    # null says here that no row is left out
    one["stream"]["outlier_norm_multiple"] = parts["stream"]["outlier_norm_multiple"]
    return {**({"models": several} if several else {}), **one}


def recorded_models(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``recorded_options`` that says which model it was, or which models; empty where nothing does."""
    several = {key: _listed("model", _model_options(each)) for key, each in several_models(metadata).items()}
    if several:
        return {"models": several}
    model = metadata.get("model")
    return {"model": _listed("model", _model_options(model))} if model else {}


def described_options(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All that ``load_model``, ``load_tokens`` and ``ActivationStream`` were given, by the record of live objects.

    It describes a run, and is not to be obeyed where it comes from a file: ``recorded_options`` is.
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
        "tokens": {name: tokens[name] for name in marked(TokenOptions) if tokens.get(name) is not None},
        "stream": {
            **{name: metadata[name] for name in marked(StreamOptions) if metadata.get(name) is not None},
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
    return {name: given[name] for name in marked(ModelOptions) if given.get(name) is not None}


def _listed(part: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return foreign.listed(part, PARTS[part], record)


def override(recorded: Mapping[str, Any], overrides: Mapping[str, Any], part: str) -> dict[str, Any]:
    """``recorded`` by a file, with the caller's ``overrides`` laid over it; each that changes something is logged.

    A model that the file names is data: ``load_model``'s ``data_only``. Raises ``ConfigError`` for a recorded value
    that is not taken from a file (``core/foreign.py``), unless it is overridden.
    """
    kind = part.partition(".")[0].replace("models", "model")
    replaced = {*overrides, "mixture"} if "source" in overrides else {*overrides}
    foreign.refuse(kind, PARTS[kind], {name: value for name, value in recorded.items() if name not in replaced})
    for name, value in overrides.items():
        if recorded.get(name) != value:
            logger.info("%s.%s overridden: %r -> %r", part, name, recorded.get(name), value)
    changed = {**recorded, **overrides}
    if kind == "model" and "source" not in overrides:
        changed["data_only"] = True
    if kind == "model" and changed.get("source") != recorded.get("source"):
        changed.pop("fingerprint", None)  # another source may have other weights
    return changed


def model_again(options: Mapping[str, Any]) -> LanguageModel:
    """``load_model`` with recorded options; a warning where the weights are others than those recorded."""
    refuse_unnamed_model(options.get("source"))
    given = {name: value for name, value in options.items() if name not in ("source", "fingerprint")}
    model = load_model(options["source"], **given)
    if problem := other_weights(options, model):
        logger.warning("%s", problem)
    return model


def other_weights(options: Mapping[str, Any], model: LanguageModel) -> str | None:
    """What to say where ``model`` has other weights than the fingerprint in ``options``; None where there is none."""
    recorded, found = options.get("fingerprint"), model.record()["fingerprint"]
    if None in (recorded, found) or recorded == found:
        return None
    return (
        f"the weights of {options['source']} are not those recorded (fingerprint {found}, not {recorded}): figures and "
        "features found on the recorded ones do not hold for them"
    )


def override_models(recorded: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``override`` for the model of ``recorded_options``, or for each of its models."""
    if "models" not in recorded:
        return {"model": override(recorded["model"], overrides, "model")}
    return {"models": {key: override(each, overrides, f"models.{key}") for key, each in recorded["models"].items()}}


def models_again(recorded: Mapping[str, Any]) -> LanguageModel | dict[str, LanguageModel]:
    """The model of ``override_models``, or its models by name."""
    if "models" not in recorded:
        return model_again(recorded["model"])
    return {key: model_again(options) for key, options in recorded["models"].items()}


def tokens_again(options: Mapping[str, Any], model: LanguageModel) -> Tokens:
    """``load_tokens`` with recorded options and the model's tokenizer; a ``source`` replaces a ``mixture``."""
    rest = {name: value for name, value in options.items() if name not in ("source", "mixture", "when_dry")}
    if "source" in options:
        text: TextSource | Mixture = TextSource(source=options["source"])
    else:
        parts = {name: from_plain(TextSource, part) for name, part in options["mixture"].items()}
        text = Mixture(parts=parts, when_dry=options["when_dry"])
    refuse_unnamed_text(text)
    for name, kind in get_type_hints(TokenOptions).items():
        if name in rest and is_dataclass(kind):
            rest[name] = from_plain(cast(type, kind), rest[name])
    return load_tokens(text.source if isinstance(text, TextSource) else text, model.tokenizer, **rest)
