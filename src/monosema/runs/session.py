"""Rebuilding what a run or a dictionary was made with: model, text, stream, coder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from monosema import hub
from monosema.coders import Dictionary, TrainableDictionary
from monosema.core.errors import ConfigError, FileError
from monosema.core.facts import Facts, shown_as_facts
from monosema.core.option_fields import marked
from monosema.core.peers import explains_options
from monosema.core.progress import doing
from monosema.core.words import counted
from monosema.data import ActivationStream, Tokens
from monosema.data.named_models import NamedModels, split_site_name
from monosema.data.packed.manifest import is_packed
from monosema.data.rebuild import (
    PARTS,
    models_again,
    other_weights,
    override,
    override_models,
    recorded_models,
    recorded_options,
    tokens_again,
)
from monosema.data.sites import RowLayout
from monosema.models import LanguageModel
from monosema.runs.config import (
    MAIN_MODEL,
    CoderOptions,
    ModelOptions,
    RunConfig,
    StreamOptions,
    TokenOptions,
)
from monosema.runs.make import make_coder
from monosema.runs.start import load_start

DEFAULT_CONTEXT_SIZE = 256

Models = LanguageModel | Mapping[str, LanguageModel]
"""A language model, or several by name."""

_FIXED = ("source", "dtype", "fingerprint")
"""Recorded options that ``open_session`` does not take by these names."""


@shown_as_facts
@dataclass(frozen=True, repr=False)
class Session:
    """A dictionary and what it was trained with."""

    coder: Dictionary
    """The dictionary."""
    model: LanguageModel
    """The language model it reads; of several, the first (``stream.models`` has them all)."""
    tokens: Tokens
    """The text, with the same held-out side."""
    stream: ActivationStream
    """The stream it was trained on, at its start."""

    @property
    def models(self) -> Models:
        """What ``evaluate`` puts the dictionary into: the model, or all of them by name."""
        return self.stream.models or self.model

    def _facts(self) -> Facts:
        coder = self.coder
        named = self.stream.models or {"": self.model}
        return Facts(
            "Session: a dictionary and what it was trained with",
            {
                "coder": f"{coder.variant_words}, {counted(coder.d_sae, 'latent')} at {coder.hook_name}",
                "models": "; ".join(f"{key}: {each}" if key else str(each) for key, each in named.items()),
                "tokens": str(self.tokens),
                "stream": f"batches of {counted(self.stream.batch_size, 'row')}",
            },
        )


@explains_options
def open_session(
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    trust_remote_code: bool = False,
    progress: bool = False,
    **overrides: Any,
) -> Session:
    """Rebuild model, tokens and stream from what the dictionary in ``folder`` recorded.

    The model that the dictionary names is data: its weights are read from safetensors and its tokenizer is loaded, and
    code that comes with it runs only with ``trust_remote_code``, whatever the dictionary says. Which recorded options
    are used is listed in ``core/foreign.py``; a value that is not taken from a file is refused by name.

    ``overrides`` replace recorded options: ``model=`` and ``text=`` their sources, anything else by its name
    (``device="cpu"``, ``batch_size=512``, …). Each one that changes something is logged with both values. Where the
    dictionary reads several models, ``model=`` maps names to sources, and other options of models hold for all of them.
    A model whose weights are not the recorded ones is logged as a warning, and noted in every report. With
    ``progress`` each part of the work is said when it begins.
    Raises ``FileError`` where the dictionary records no model or text, or its model's folder is gone; ``ConfigError``
    on an unknown option and on a recorded one that is not taken from a file.
    """
    if trust_remote_code:
        overrides = {**overrides, "trust_remote_code": True}
    coder = hub.load(folder, name)
    recorded = recorded_options(coder.metadata)
    homes = {"model": ("model", "source"), "text": ("tokens", "source")}
    for part, config in PARTS.items():
        homes |= {option: (part, option) for option in marked(config) if option not in _FIXED}
    chosen: dict[str, dict[str, Any]] = {"model": {}, "tokens": {}, "stream": {}}
    for key, value in overrides.items():
        if key not in homes:
            raise ConfigError(f"unknown option {key!r}; recorded are {', '.join(sorted(homes))}")
        part, option = homes[key]
        chosen[part][option] = value
    with doing("loading the model", enabled=progress):
        models = models_again(_override_models(recorded, chosen["model"]))
    with _reading(progress):
        tokens = tokens_again(override(recorded["tokens"], chosen["tokens"], "tokens"), NamedModels(models).first)
    with _checking(progress):
        stream = ActivationStream(models, tokens, **override(recorded["stream"], chosen["stream"], "stream"))
    return Session(coder, stream.model, tokens, stream)


def open_models(
    coder: Dictionary, *, model: str | Mapping[str, str] | None = None, trust_remote_code: bool = False
) -> Models:
    """The model that ``coder`` records, or its models by name; ``model`` names others in their place.

    No text is read. The rules for what a dictionary may say are those of ``open_session``. Raises ``FileError`` where
    the dictionary records no model and none is named.
    """
    recorded = recorded_models(coder.metadata)
    chosen: dict[str, Any] = {} if model is None else {"source": model}
    if not recorded:
        if not isinstance(model, str):
            raise FileError("the dictionary does not record the model that it reads; name it with model= (--model)")
        recorded = {"model": {}}
    if trust_remote_code:
        chosen["trust_remote_code"] = True
    return models_again(_override_models(recorded, chosen))


def _override_models(recorded: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    if "models" not in recorded:
        return override_models(recorded, chosen)
    names = list(recorded["models"])
    sources = chosen.get("source", {})
    if not isinstance(sources, Mapping) or not set(sources) <= set(names):
        raise ConfigError(
            f"the dictionary reads several models ({', '.join(names)}); give their sources by name, as in "
            f"model={{{names[-1]!r}: ...}}, got {sources!r}"
        )
    shared = {option: value for option, value in chosen.items() if option != "source"}
    own = {key: {"source": sources[key]} if key in sources else {} for key in names}
    return {
        "models": {
            key: override(options, {**shared, **own[key]}, f"models.{key}")
            for key, options in recorded["models"].items()
        }
    }


def build_model(options: ModelOptions, *, progress: bool = False) -> LanguageModel:
    """``load_model`` with these options; ``ConfigError`` where the weights are not those of ``options.fingerprint``."""
    with doing(f"loading the model {options.source}", enabled=progress):
        model = options.build()
    if problem := other_weights({"source": options.source, "fingerprint": options.fingerprint}, model):
        raise ConfigError(f"{problem}; restore those weights, or leave out model.fingerprint for a new run")
    return model


def build_models(config: RunConfig, *, progress: bool = False) -> Models:
    """The model of ``config``, or, with ``other_models``, all by name; site names are checked before any is loaded."""
    if not config.other_models:
        return build_model(config.model, progress=progress)
    options = {MAIN_MODEL: config.model, **config.other_models}
    for name in (*config.stream.hook_names, *(config.stream.targets or ())):
        split_site_name(name, options)
    return {key: build_model(each, progress=progress) for key, each in options.items()}


def build_tokens(options: TokenOptions, model: Models, *, progress: bool = False) -> Tokens:
    """``load_tokens`` with these options and the (first) model's tokenizer."""
    named = NamedModels(model)
    models = list(named.by_name.values()) or [named.first]
    size = min(each.context_size or DEFAULT_CONTEXT_SIZE for each in models)
    if options.context_size is None and not is_packed(options.source):  # packed tokens have a size of their own
        options = replace(options, context_size=min(size, DEFAULT_CONTEXT_SIZE))
    with _reading(progress):
        return options.build(named.first.tokenizer)


def build_stream(options: StreamOptions, model: Models, tokens: Tokens, *, progress: bool = False) -> ActivationStream:
    """An ``ActivationStream`` with these options."""
    with _checking(progress):
        return options.build(model, tokens)


def _reading(progress: bool) -> contextlib.AbstractContextManager[None]:
    return doing("reading and tokenizing the text", enabled=progress)


def _checking(progress: bool) -> contextlib.AbstractContextManager[None]:
    return doing("checking the model and the text", enabled=progress)


def build_layout(options: StreamOptions, model: Models) -> RowLayout:
    """The sites of the stream that ``build_stream`` makes, with their widths."""
    named = NamedModels(model)
    reads = named.sites(options.hook_names)
    return RowLayout(reads, reads if options.targets is None else named.sites(options.targets))


def build_coder(config: RunConfig, stream: ActivationStream) -> TrainableDictionary:
    """The coder of ``config.coder`` for the stream's sites, or the saved one that it starts from."""
    return coder_for(config.coder, stream.layout, stream.record())


def coder_for(options: CoderOptions, layout: RowLayout, models: Mapping[str, Any]) -> TrainableDictionary:
    """The same for sites of models with the record ``models``."""
    return make_coder(options, layout) if options.start_from is None else load_start(options, layout, models)
