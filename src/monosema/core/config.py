"""Strict nested config dataclasses, to and from plain values, YAML and JSON.

A config is a frozen, keyword-only dataclass. Reading is strict: an unknown key is an error with a suggestion,
a value of the wrong type is an error with its path (``training.lr``). Where a field may hold one of several
configs (an activation, an objective), the plain form carries the class's name under ``kind``. The several are the
members of a union, or the kinds registered in a family (``core/families.py``).
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from monosema.core.errors import ConfigError, FileError, nearest_names
from monosema.core.families import is_family
from monosema.core.files import read_json, read_text
from monosema.core.peers import peers_option
from monosema.core.plain import check_plain, twice
from monosema.core.printable import terminal_text
from monosema.core.spelling import spelled_out, with_whole_numbers

C = TypeVar("C")
MOST_YAML_BYTES = 2**16
"""A config of the library has a tenth of it; more takes seconds to parse."""
_MOST_VALUES = 100_000
_MOST_BRACKETS = 100
_FLOAT = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, as YAML 1.2 and JSON do; YAML 1.1 asks for a dot and takes it for text."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that ``_Loader`` would read as a number."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def to_plain(value: Any) -> Any:
    """``value`` (a config, or anything inside one) as dicts, lists, strings, numbers, booleans and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return {"kind": type(value).__name__, **plain} if getattr(value, "is_variant", False) else plain
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"a config cannot hold a {type(value).__name__}")


def from_plain(cls: type[C], plain: Any, *, as_typed: bool = False) -> C:
    """The config of class ``cls`` that ``plain`` describes; ``ConfigError`` on unknown keys and wrong types.

    ``as_typed`` is for options of the caller, and not for files of others: 1e6 is a whole number then, and a config's
    name may stand for it in any case, with a number where the config takes one (``topk``, ``TopK(16)``).
    """
    try:
        return typing.cast(C, _read(cls, plain, "", as_typed))
    except UnknownOptionError as error:
        elsewhere = [path for path in option_paths(cls) if path.rpartition(".")[2] == error.key]
        if error.is_known_here or not elsewhere:
            raise
        raise ConfigError(f"unknown option {error.path!r}; did you mean {' or '.join(map(repr, elsewhere))}?") from None


def from_yaml(cls: type[C], text: str) -> C:
    """Like ``from_plain`` for YAML text of the caller (JSON is YAML)."""
    plain = parse_yaml(text, "the text")
    return from_plain(cls, {} if plain is None else plain, as_typed=True)


def parse_yaml(text: str, where: object) -> Any:
    """The plain value of YAML ``text`` from ``where``; ``ConfigError`` where it is not valid, has a key twice in one
    mapping, has tags that make objects, is nested deeply, or stands for very many values (aliases of aliases)."""
    try:
        if max(accumulate((c in "[{") - (c in "]}") for c in text), default=0) > _MOST_BRACKETS:
            raise ValueError("it is nested too deeply")  # the parser would take very long to say so
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _n_values(node, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        _refuse_keys_given_twice(node, set())
        plain = loader.construct_document(node)
        check_plain(plain)
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is not valid YAML: it is nested too deeply") from error
    return plain


def _n_values(node: Any, known: dict[int, float]) -> float:
    """Values that ``node`` stands for, with every alias written out; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum([_n_values(part, known) for part in parts])
    return known[id(node)]


def _refuse_keys_given_twice(node: Any, seen: set[int]) -> None:
    """``ValueError`` for a key that stands twice in a mapping: the last one would win without a word."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    keys: set[tuple[str, str]] = set()
    for part in node.value:
        key, *inner = part if isinstance(node, yaml.MappingNode) else (None, part)
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in keys:
                raise ValueError(twice(key.value, key.start_mark.line + 1))
            keys.add((key.tag, key.value))
        for each in inner:
            _refuse_keys_given_twice(each, seen)


def to_yaml(config: Any) -> str:
    """``config`` as YAML, fields in the order of their definition."""
    return dump_yaml(to_plain(config))


def dump_yaml(plain: Any) -> str:
    """A plain value as YAML that ``parse_yaml`` reads; as ASCII where characters could not be seen in a terminal."""
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text if terminal_text(text) == text else yaml.dump(plain, Dumper=_Dumper, sort_keys=False)


def load_plain(path: str | Path) -> dict[str, Any]:
    """The mapping in a ``.yaml`` or ``.json`` file; an empty file is an empty mapping."""
    is_json = Path(path).suffix == ".json"
    plain = read_json(path) if is_json else parse_yaml(read_text(path, MOST_YAML_BYTES), path)
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} must hold a mapping of options, got a {type(plain).__name__}")
    return plain


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``update`` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_kind(old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _same_kind(old: Mapping[str, Any], update: Mapping[str, Any]) -> bool:
    # the options of one activation mean nothing to another: a new kind replaces the whole
    return bool(update.get("kind", old.get("kind")) == old.get("kind"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The options in which two plain configs differ, as lines ``training.lr: 0.001 -> 0.003``."""
    lines = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def check_types(config: Any) -> None:
    """``ConfigError`` for a field of ``config`` that does not hold what its annotation says: a misspelled word, a class
    in place of an object, a fraction where a whole number belongs. For use at the start of ``__post_init__``.

    A float without a fraction (1e6) is put right where a whole number belongs. Readers of files of others look at the
    types before they make a config.
    """
    cls: type = type(config)
    for field in dataclasses.fields(config):
        expected, value = _hints(cls)[field.name], getattr(config, field.name)
        if _holds(expected, value):
            continue
        whole = with_whole_numbers(value)
        if not _holds(expected, whole):
            raise _wrong(f"{cls.__name__}.{field.name}", _words(expected), value)
        object.__setattr__(config, field.name, whole)


def made_of(cls: type[C], values: Mapping[str, Any], where: object) -> C:
    """The dataclass ``cls`` of ``values`` from the file ``where``; ``FileError`` where one is of another type than its
    field, or a field is missing or unknown."""
    hints = _hints(typing.cast(type, cls))
    check_values(values, hints, where)
    tuples = {name for name, kind in hints.items() if typing.get_origin(kind) is tuple}
    given = {name: tuple(each) if name in tuples and isinstance(each, list) else each for name, each in values.items()}
    try:
        made = cls(**given)
        check_types(made)
    except (TypeError, ConfigError) as error:
        raise FileError(f"{where} is damaged: {error}") from error
    return made


def check_values(values: Mapping[str, Any], expected: Mapping[str, Any], where: object) -> None:
    """``FileError`` for a value from the file ``where`` that is not of the type ``expected`` by its key; null may stand
    for any, and keys that are not expected are passed over."""
    for name, kind in expected.items():
        value = values.get(name)
        if value is not None and not _holds(kind, value):
            raise FileError(f"{where}: {_wrong(name, _words(kind), value)}")


def _options(expected: Any) -> tuple[Any, ...] | None:
    """What ``expected`` leaves the choice of: the members of a union, the kinds of a family; None for anything else."""
    if typing.get_origin(expected) in (Union, types.UnionType):
        members = typing.get_args(expected)
        return tuple(each for member in members for each in (_options(member) or (member,)))
    return tuple(expected.kinds().values()) if is_family(expected) else None


def _holds(expected: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return True
    if (options := _options(expected)) is not None:
        return any(_holds(each, value) for each in options)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin in (tuple, list):
        if not isinstance(value, (tuple, list)):
            return False
        inner = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) or origin is list else arguments
        return len(inner) == len(value) and all(map(_holds, inner, value))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            _holds(kind, each) for pair in value.items() for kind, each in zip(arguments, pair, strict=True)
        )
    if expected in (int, float):
        number = numbers.Integral if expected is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    plain = origin or expected
    return not isinstance(plain, type) or isinstance(value, plain)


def _words(expected: Any) -> str:
    if (options := _options(expected)) is not None:
        words = " or ".join(_words(each) for each in options)
        return f"{words} (or another {expected.__name__} that is registered)" if is_family(expected) else words
    if typing.get_origin(expected) is Literal:
        return " or ".join(repr(each) for each in typing.get_args(expected))
    if typing.get_origin(expected) is list:
        return f"a list of {_words(typing.get_args(expected)[0])}"
    named = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "None"}
    named[dict] = "a mapping"
    return named.get(expected, getattr(expected, "__name__", str(expected)))


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of the fields of ``cls``; a type variable is what a class below its own gives for it."""
    given: dict[Any, Any] = {}
    for each in cls.__mro__:
        for base in each.__dict__.get("__orig_bases__", ()):
            variables = getattr(typing.get_origin(base), "__parameters__", ())
            pairs = zip(variables, typing.get_args(base) if variables else (), strict=True)
            given |= {variable: kind for variable, kind in pairs if not isinstance(kind, typing.TypeVar)}
    return {name: given.get(kind, kind) for name, kind in typing.get_type_hints(cls).items()}


def _read(expected: Any, plain: Any, path: str, as_typed: bool) -> Any:
    origin = typing.get_origin(expected)
    if expected is Any:
        return plain
    if (options := _options(expected)) is not None:
        return _read_union(options, plain, path, as_typed)
    if origin is Literal:
        if not any(plain == option and type(plain) is type(option) for option in typing.get_args(expected)):
            raise _wrong(path, " or ".join(repr(option) for option in typing.get_args(expected)), plain)
        return plain
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(typing.cast(type, expected), plain, path, as_typed)
    if origin in (tuple, list):
        if not isinstance(plain, (list, tuple)):
            raise _wrong(path, "a list", plain)
        arguments = typing.get_args(expected)
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            if len(plain) != len(arguments):
                raise _wrong(path, f"{len(arguments)} values", plain)
            pairs = enumerate(zip(arguments, plain, strict=True))
            return tuple(_read(kind, item, f"{path}[{i}]", as_typed) for i, (kind, item) in pairs)
        return origin(_read(arguments[0], item, f"{path}[{i}]", as_typed) for i, item in enumerate(plain))
    if origin in (dict, Mapping) or origin is types.MappingProxyType:
        if not isinstance(plain, Mapping):
            raise _wrong(path, "a mapping", plain)
        value_type = typing.get_args(expected)[1]
        for key in plain:
            if not isinstance(key, str):
                raise _wrong(_join(path, str(key)), "text for a key (quote it)", key)
        return {key: _read(value_type, value, _join(path, key), as_typed) for key, value in plain.items()}
    if expected is int and as_typed:
        plain = with_whole_numbers(plain)
    return _read_scalar(expected, plain, path)


def _read_scalar(expected: Any, plain: Any, path: str) -> Any:
    if expected is type(None):
        if plain is not None:
            raise _wrong(path, "nothing (null)", plain)
        return None
    if expected is float and isinstance(plain, float) and math.isnan(plain):
        raise _wrong(path, "a number", plain)  # no comparison further on would refuse it
    if expected is float and isinstance(plain, (int, float)) and not isinstance(plain, bool):
        return plain  # an int stays one, so that what was written is what is read
    if expected is int and isinstance(plain, int) and not isinstance(plain, bool):
        return plain
    if expected is Path and isinstance(plain, (str, Path)):
        return Path(plain)
    if expected in (str, bool) and isinstance(plain, expected):
        return plain
    names = {float: "a number", int: "a whole number", str: "a string", bool: "true or false", Path: "a path"}
    raise _wrong(path, names.get(expected, getattr(expected, "__name__", str(expected))), plain)


def _read_union(options: tuple[Any, ...], plain: Any, path: str, as_typed: bool) -> Any:
    if plain is None and type(None) in options:
        return None
    configs: dict[str, type] = {o.__name__: o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)}
    if isinstance(plain, tuple(configs.values())):
        return plain
    if configs and as_typed:
        plain = spelled_out(plain, configs)
    if configs and isinstance(plain, Mapping):
        if len(configs) == 1 and "kind" not in plain:
            return _read(next(iter(configs.values())), plain, path, as_typed)
        kind = plain.get("kind")
        if not isinstance(kind, str) or kind not in configs:
            near = nearest_names(str(kind), configs)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(configs)}"
            raise ConfigError(f"{path or 'config'}: expected a mapping with 'kind', got kind {kind!r:.80}{hint}")
        return _read(configs[kind], plain, path, as_typed)
    errors = []
    for option in options:
        if option is type(None) or dataclasses.is_dataclass(option):
            continue
        try:
            return _read(option, plain, path, as_typed)
        except ConfigError as error:
            errors.append(str(error))
    kinds = "a mapping with 'kind' " + " or ".join(repr(name) for name in configs)
    raise ConfigError("; or ".join(errors) or str(_wrong(path, kinds, plain)))


def _read_dataclass(cls: type, plain: Any, path: str, as_typed: bool) -> Any:
    if isinstance(plain, cls):
        return plain
    if not isinstance(plain, Mapping):
        raise _wrong(path, f"a mapping of {cls.__name__} options", plain)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    given = {key: value for key, value in plain.items() if not (key == "kind" and getattr(cls, "is_variant", False))}
    for key in given:
        if key not in fields:
            raise UnknownOptionError(_join(path, str(key)), fields)
    hints = _hints(cls)
    values = {key: _read(hints[key], value, _join(path, key), as_typed) for key, value in given.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path or cls.__name__}: missing {', '.join(missing)}")
    return cls(**values)


class UnknownOptionError(ConfigError):
    """A key that is no option where it stands."""

    def __init__(self, path: str, known: Iterable[str]):
        self.path, self.key = path, path.rpartition(".")[2]
        ours, near = peers_option(self.key), nearest_names(self.key, known)
        self.is_known_here = ours is not None
        """Whether another library has an option of this name."""
        hint = f"here it is {ours}" if ours else f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown option {path!r}; {hint}")


def option_paths(cls: type, prefix: str = "") -> list[str]:
    """The options of a config and of its sections, as paths: ``training.lr``; without those of one of several kinds."""
    return list(option_types(cls, prefix))


def option_types(cls: type, prefix: str = "") -> dict[str, Any]:
    """The annotation of each of ``option_paths``."""
    types: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        inner = _hints(cls)[field.name]
        if dataclasses.is_dataclass(inner):
            types |= option_types(typing.cast(type, inner), f"{prefix}{field.name}.")
        else:
            types[prefix + field.name] = inner
    return types


def _wrong(path: str, expected: str, plain: Any) -> ConfigError:
    return ConfigError(f"{path or 'config'}: expected {expected}, got {_brief(plain)}")


def _brief(plain: Any) -> str:
    text = repr(plain)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
