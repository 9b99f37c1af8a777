"""Options are declared once, in the config of their part: the keyword functions take the same ones."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

import monosema as ms
from monosema.core.config import check_types, from_plain, to_plain
from monosema.core.errors import ConfigError
from monosema.core.option_fields import file_fields
from monosema.data import ActivationCache, ActivationStream, load_tokens, loading, pretokenize, write_cache
from monosema.data import config as text_config
from monosema.data.cache_config import CacheOptions, CacheSource
from monosema.data.config import CHOSEN_WHERE_READ, SOURCE_OPTIONS, Mixture, TextSource, TokenOptions
from monosema.data.packed import write as packed_write
from monosema.data.packing_config import Packing, Positions
from monosema.data.rebuild import PARTS, recorded_options, tokens_again
from monosema.data.stream_config import StreamOptions
from monosema.models import load_model
from monosema.models.config import ModelOptions, TokenizerOptions
from monosema.models.load import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Pair:
    """A function or class that people call, and the config of its options."""

    function: Callable[..., Any]
    config: type
    only_in_function: tuple[str, ...]
    """What is handed in by the code that has it, and what no config says."""
    only_in_config: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    """Options that the function has no default for, as a config of a whole run has."""
    other_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The function's default where it is another spelling of the config's."""


PAIRS = {
    "load_model": Pair(
        load_model,
        ModelOptions,
        only_in_function=("token", "data_only"),
        only_in_config=("fingerprint",),
        required=("source",),
        other_defaults={"model_kwargs": None, "forward_kwargs": None},
    ),
    "load_tokenizer": Pair(load_tokenizer, TokenizerOptions, only_in_function=()),
    "load_tokens": Pair(
        load_tokens,
        TokenOptions,
        only_in_function=("tokenizer",),
        only_in_config=("mixture", "when_dry"),
        required=("source",),
        other_defaults={"packing": None, "positions": None},
    ),
    "pretokenize": Pair(
        pretokenize,
        TokenOptions,
        only_in_function=("tokenizer", "out", "shard_bytes", "progress"),
        only_in_config=("mixture", "when_dry", *CHOSEN_WHERE_READ),
        required=("source", "context_size"),
        other_defaults={"packing": None},
    ),
    "ActivationStream": Pair(
        ActivationStream,
        StreamOptions,
        only_in_function=("model", "tokens", "buffer_device"),
        required=("hook_names",),
    ),
    "ActivationCache": Pair(
        ActivationCache,
        CacheSource,
        only_in_function=("token",),
        only_in_config=("fingerprint", "device"),
        required=("folder",),
    ),
    "write_cache": Pair(write_cache, CacheOptions, only_in_function=("stream", "folder", "progress")),
}


def parameters(pair: Pair) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(pair.function).parameters)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_function_takes_the_options_of_its_config(pair: Pair) -> None:
    fields = {each.name for each in dataclasses.fields(pair.config)}
    assert set(pair.only_in_config) <= fields
    assert {*parameters(pair)} - {*pair.only_in_function} == fields - {*pair.only_in_config}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_their_defaults_are_equal(pair: Pair) -> None:
    for field in dataclasses.fields(pair.config):
        if field.name in pair.only_in_config:
            continue
        found = parameters(pair)[field.name].default
        if field.name in pair.required:
            assert found is inspect.Parameter.empty
        elif field.name in pair.other_defaults:
            assert found == pair.other_defaults[field.name]
        else:
            assert found == field.default, field.name
            assert type(found) is type(field.default), field.name


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_function_takes_the_types_of_its_config(pair: Pair) -> None:
    function = pair.function.__init__ if isinstance(pair.function, type) else pair.function
    function = inspect.unwrap(function)
    names = {**vars(inspect.getmodule(function)), **_ONLY_FOR_TYPES}
    taken = typing.get_type_hints(function, globalns=names)
    declared = typing.get_type_hints(pair.config)
    for name in declared.keys() - set(pair.only_in_config) - set(pair.required):
        assert kinds(declared[name]) <= kinds(taken[name]) or Any in kinds(taken[name]), name


_ONLY_FOR_TYPES = {"Tokens": ms.Tokens}

_WIDER = {
    "Collection": ("tuple",),
    "Sequence": ("tuple",),
    "Mapping": ("dict",),
}
"""Types that stand for others."""


def kinds(hint: Any) -> set[Any]:
    """The plain types that ``hint`` admits."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return {*arguments}
    if typing.get_origin(hint) in (typing.Union, type(int | str)):
        return {kind for each in arguments for kind in kinds(each)}
    if hint is Any:
        return {Any}
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    return {name, *_WIDER.get(name, ())}


def other_than(value: Any, hint: Any) -> Any:
    """A value of the type ``hint`` that is not ``value``."""
    own = {
        Packing: Packing(mode="truncate"),
        Positions: Positions(start=1),
        bool: not value,
        int: 7,
        float: 0.25,
        str: "other",
    }
    for kind in (hint, *typing.get_args(hint)):
        if kind in own and own[kind] != value:
            return own[kind]
    return ("one", "two")


def test_every_keyword_of_load_tokens_reaches_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[TextSource | Mixture, TokenOptions, Any]] = []
    monkeypatch.setattr(loading, "make_tokens", lambda *given: seen.append(given))
    for name, value in _other_values(PAIRS["load_tokens"]).items():
        load_tokens("a.txt", "tokenizer", **{name: value})
        text, options, tokenizer = seen.pop()
        assert (text.source, tokenizer) == ("a.txt", "tokenizer")
        assert getattr(text if name in SOURCE_OPTIONS else options, name) == value, name


def test_every_keyword_of_pretokenize_reaches_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(packed_write, "write_tokens", lambda *given, **more: seen.append((given, more)))
    for name, value in _other_values(PAIRS["pretokenize"]).items():
        pretokenize("a.txt", "tokenizer", 16, "out", **{name: value})
        (text, options, tokenizer, out), more = seen.pop()
        assert (text.source, options.context_size, tokenizer, out) == ("a.txt", 16, "tokenizer", "out")
        assert getattr(text if name in SOURCE_OPTIONS else options, name) == value, name
        assert more == {"shard_bytes": text_config.SHARD_BYTES, "progress": True}


def _other_values(pair: Pair) -> dict[str, Any]:
    hints = typing.get_type_hints(pair.config)
    fields = [
        each for each in dataclasses.fields(pair.config) if each.name not in (*pair.only_in_config, *pair.required)
    ]
    return {each.name: other_than(each.default, hints[each.name]) for each in fields}


def test_a_part_of_a_mixture_is_chosen_from_as_a_source_alone_is() -> None:
    alone, part = ({each.name: each for each in dataclasses.fields(kind)} for kind in (TokenOptions, TextSource))
    types = [typing.get_type_hints(kind) for kind in (TokenOptions, TextSource)]
    assert tuple(name for name in alone if name in part and name != "source") == SOURCE_OPTIONS
    for name in SOURCE_OPTIONS:
        assert alone[name].default == part[name].default
        assert types[0][name] == types[1][name]
    options = TokenOptions(column="body", max_documents=3, split="train", data_files=("a",), streaming=True)
    assert options.text() == TextSource(
        source="stdlib", column="body", max_documents=3, split="train", data_files=("a",), streaming=True
    )


@pytest.mark.parametrize("config", [*PARTS.values(), CacheOptions, TokenizerOptions], ids=lambda each: each.__name__)
def test_defaults_are_of_the_types_declared(config: type) -> None:
    check_types(config())
    assert from_plain(config, to_plain(config())) == config()


def test_what_files_may_decide_is_said_by_each_field() -> None:
    apart = {
        "model": {"trust_remote_code"},
        "tokens": {"n_processes"},
        "stream": {"chunk_bytes", "compile", "prefetch"},
    }
    for part, config in PARTS.items():
        fields = {each.name for each in dataclasses.fields(config)}
        assert fields - set(file_fields(config)) == apart[part], part


def test_a_cache_knows_the_options_that_open_it_again(tmp_path: Path, model: ms.LanguageModel) -> None:
    tokens = load_tokens("stdlib", model.tokenizer, 16, max_documents=20)
    stream = ActivationStream(model, tokens, "blocks.0.hook_resid_post", 16, chunk_contexts=8)
    write_cache(stream, tmp_path / "cache", tokens=400, shard_bytes=2**10)
    options = CacheSource(
        folder=str(tmp_path / "cache"), batch_size=8, seed=3, epochs=2, mix_bytes=2**20, validation_fraction=0.2
    )
    cache = options.build()
    assert cache.options == dataclasses.replace(
        options, hook_names=("blocks.0.hook_resid_post",), fingerprint=cache.manifest.fingerprint
    )
    assert next(cache.options.build()).equal(next(cache))


def test_an_option_that_is_recorded_where_it_is_chosen_comes_back(tmp_path: Path, model: ms.LanguageModel) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"w{n % 9} w{n % 7} " * 20}) + "\n" for n in range(60)))
    plain = load_tokens(file, model.tokenizer, 16)
    tokens = load_tokens(file, model.tokenizer, 16, shuffle_documents=0)
    assert tokens.train.fingerprint != plain.train.fingerprint
    recorded = recorded_options({"model": {"source": "builtin"}, "tokens": tokens.record})["tokens"]
    assert from_plain(TokenOptions, recorded).shuffle_documents == 0
    assert tokens_again(recorded, model).train.fingerprint == tokens.train.fingerprint
    assert from_plain(TokenOptions, recorded).build(model.tokenizer).train.fingerprint == tokens.train.fingerprint


def test_a_chosen_option_of_a_stream_is_recorded_and_part_of_its_identity() -> None:
    options = StreamOptions(seed=3, autocast="bfloat16", chunk_contexts=7, prefetch=False, outlier_norm_multiple=None)
    record = {
        "batch_size": 2048,
        "seed": 3,
        "epochs": 1,
        "chunk_contexts": 7,
        "model_batch_size": 32,
        "dtype": None,
        "autocast": "bfloat16",
        "compile": None,
    }
    assert list(options.record().items()) == list(record.items())
    apart = ("epochs", "chunk_contexts")
    assert options.identity() == {name: value for name, value in record.items() if name not in apart}


def test_what_was_recorded_without_a_name_is_not_built() -> None:
    with pytest.raises(ConfigError, match="trained on text in memory; hand the tokens in, or name a text"):
        TokenOptions(source="text in memory").build(None)
    with pytest.raises(ConfigError, match="trained with a model object in memory; hand one in, or name a model"):
        ModelOptions(source="model in memory").build()
