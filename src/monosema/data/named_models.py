"""The model a stream reads, or several by name that share a vocabulary, and which of them a site belongs to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, UserError, unknown_name
from monosema.core.words import counted
from monosema.models import LanguageModel
from monosema.models.fingerprint import weights_fingerprint

_SAMPLE = "Sites of 2 models:\n\tdef résumé(x): return x ** 10  # naïve"
_N_SHOWN = 3


@final
class NamedModels:
    """One language model, whose sites go by their hook names, or several by name, whose sites are ``name:hook``.

    Args:
        models: a model, or models by name. Names are not empty and hold neither ``:`` nor ``+``.

    Raises:
        ConfigError: the mapping is empty, a name or a value is not one, or the models' vocabularies differ.
    """

    def __init__(self, models: LanguageModel | Mapping[str, LanguageModel]) -> None:
        self.is_mapping = isinstance(models, Mapping)
        self._models: dict[str, LanguageModel] = dict(models) if isinstance(models, Mapping) else {"": models}
        if self.is_mapping:
            _check_mapping(self._models)
            first, *others = self._models
            for other in others:
                _refuse_another_vocabulary(first, self._models[first], other, self._models[other])

    @property
    def by_name(self) -> dict[str, LanguageModel]:
        """The models by name, in the order given; empty for a single model."""
        return dict(self._models) if self.is_mapping else {}

    @property
    def first(self) -> LanguageModel:
        """The only model, or the first of the mapping."""
        return next(iter(self._models.values()))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations; of several models', the smallest that holds them all."""
        return reduce(torch.promote_types, (model.dtype for model in self._models.values()))

    def sites(self, names: str | Sequence[str]) -> tuple[tuple[str, int], ...]:
        """(name as given, width) of each site.

        Raises:
            ConfigError: no site, one that names no model, or the same one twice.
            UnknownNameError: an unknown model or hook name; the nearest are offered.
            UserError: a hook name that the model does not define.
        """
        listed = [names] if isinstance(names, str) else list(names)
        if not listed:
            raise ConfigError("name at least one site")
        refuse_repeated_sites(listed)
        return tuple((name, self._width(name)) for name in listed)

    def capture(self, tokens_BT: Tensor, names: Sequence[str], documents_BT: Tensor | None = None) -> dict[str, Tensor]:
        """The values of sites on token ids [B, T], as {name: [B, T, width]}; each model runs once, if it has one.

        ``documents_BT`` as in ``LanguageModel.capture``.
        """
        captured: dict[str, Tensor] = {}
        for key, model in self._models.items():
            places = [(name, self._split(name)) for name in names]
            own = {hook: name for name, (owner, hook) in places if owner == key}
            if own:
                values = model.capture(tokens_BT.to(model.device).long(), own, documents_BT=documents_BT)
                captured |= {name: values[hook] for hook, name in own.items()}
        return captured

    def fingerprints(self) -> dict[str, str] | None:
        """``weights_fingerprint`` of each model by its name; None where one has none."""
        found = {key: weights_fingerprint(model.hf) for key, model in self._models.items()}
        return {key: each for key, each in found.items() if each is not None} if None not in found.values() else None

    def record(self) -> dict[str, Any]:
        """``{"model": record}`` for one model, ``{"models": {name: record}}`` for several; JSON-able."""
        if not self.is_mapping:
            return {"model": self.first.record()}
        return {"models": {key: model.record() for key, model in self._models.items()}}

    def _split(self, name: str) -> tuple[str, str]:
        return split_site_name(name, self._models) if self.is_mapping else ("", name)

    def _width(self, name: str) -> int:
        key, hook = self._split(name)
        try:
            return self._models[key].site(hook).width
        except UserError as error:
            if not self.is_mapping:
                raise
            raise type(error)(f"model {key!r}: {error}") from error


def refuse_repeated_sites(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a site that is named twice."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ConfigError(f"{', '.join(map(repr, repeated))} is named twice; a dictionary reads or writes a site once")


def split_site_name(name: str, models: Collection[str]) -> tuple[str, str]:
    """``"chat:model.layers.5.mlp:in"`` as ``("chat", "model.layers.5.mlp:in")``: the first colon ends the model's name.

    Raises:
        ConfigError: the site names no model.
        UnknownNameError: it names one that is not among ``models``; the nearest are offered.
    """
    key, colon, hook = name.partition(":")
    if colon and key in models:
        return key, hook
    if not colon or hook in ("in", "out"):
        raise ConfigError(
            f"site {name!r} does not say which model it is of; write "
            + " or ".join(repr(f"{known}:{name}") for known in islice(models, _N_SHOWN))
        )
    raise unknown_name(f"model of the site {name!r}:", key, models)


def _check_mapping(models: Mapping[str, Any]) -> None:
    if not models:
        raise ConfigError("the mapping of models is empty; name at least one, as in {'base': model}")
    for key, model in models.items():
        if not isinstance(key, str) or not key or set(key) & set(":+"):
            raise ConfigError(f"{key!r} cannot name a model: a name is a string that is not empty, without ':' and '+'")
        if not isinstance(model, LanguageModel):
            raise ConfigError(f"model {key!r} is a {type(model).__name__}; expected what load_model returns")


def _refuse_another_vocabulary(first: str, a: LanguageModel, other: str, b: LanguageModel) -> None:
    if a.tokenizer is b.tokenizer and (a.tokenizer is not None or a.vocab_size == b.vocab_size):
        return
    if a.tokenizer is None and b.tokenizer is None:
        problem = (
            f"neither has a tokenizer, and the vocabularies have {a.vocab_size} and {counted(b.vocab_size, 'token')}"
        )
    elif a.tokenizer is None or b.tokenizer is None:
        problem = f"{first if a.tokenizer is None else other!r} has no tokenizer to compare"
    else:
        problem = vocabulary_difference(first, a.tokenizer, other, b.tokenizer)
    if problem:
        raise ConfigError(
            f"the models {first!r} and {other!r} do not share a tokenizer: {problem}. Every model is given the same "
            "token ids; if they mean the same to both, load both with one: load_model(..., tokenizer=...)"
        )


def vocabulary_difference(first: str, a: Any, other: str, b: Any, *, additions: bool = True) -> str:
    """In what the tokenizers ``a`` and ``b`` of ``first`` and ``other`` differ, in words; empty where in nothing.

    Without ``additions``, tokens that one has beside all of the other's, at ids of their own, are no difference.
    """
    try:
        ids_a, ids_b = dict(a.get_vocab()), dict(b.get_vocab())
    except (AttributeError, NotImplementedError):  # a tokenizer may encode without listing its tokens
        if additions and len(a) != len(b):
            return f"they have {len(a)} and {counted(len(b), 'token')}"
        encoded = [tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"] for tokenizer in (a, b)]
        return "" if list(encoded[0]) == list(encoded[1]) else f"they encode {_SAMPLE!r} differently"
    in_a, in_b = (sorted(ids, key=lambda token: ids[token]) for ids in (ids_a, ids_b))
    differences = [
        f"{token!r} is {ids_a[token]} in {first!r} and {ids_b[token]} in {other!r}"
        for token in in_a
        if ids_b.get(token, ids_a[token]) != ids_a[token]
    ]
    for name, own, others, tokens in ((first, ids_a, ids_b, in_a), (other, ids_b, ids_a, in_b)):
        taken = set(own.values()) if additions else set(others.values())
        differences += [
            f"{each!r} is in {name!r} alone" for each in tokens if each not in others and own[each] in taken
        ]
    shown = "; ".join(differences[:_N_SHOWN])
    return shown + (f" (and {len(differences) - _N_SHOWN} more)" if len(differences) > _N_SHOWN else "")
