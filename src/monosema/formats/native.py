"""monosema's own folder format, which holds every dictionary made here.

``cfg.json`` names the ``architecture`` "monosema", which SAELens refuses, and holds the options that the dictionary is
made of; ``monosema.safetensors`` holds its tensors by parameter name; ``sparsity.safetensors`` the densities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, final

from torch import Tensor

from monosema.core.config import from_plain, to_plain
from monosema.core.errors import ConfigError, FileError
from monosema.core.files import read_json, write_json
from monosema.core.metadata import checked_metadata
from monosema.core.plain import require_version
from monosema.core.tensors import read_tensors
from monosema.formats.format import Fit
from monosema.formats.shared import (
    CONFIG_FILE,
    SPARSITY_FILE,
    FileTensors,
    peek,
    read_density,
    write_density,
    write_safetensors,
)
from monosema.formats.spec import (
    BiasMode,
    DictionarySpec,
    PartSpec,
    SiteSpec,
    Tied,
    TokenScaling,
    TrainedActivation,
    joined,
    sites_of,
)

WEIGHTS_FILE = "monosema.safetensors"
ARCHITECTURE = "monosema"
VERSION = 1
_START = ("decoder_init", "decoder_init_norm", "encoder_init", "seed")
_ACTIVATION = "activation."
"""Before the names of the activation's tensors."""

Options = TypeVar("Options", "_CoderOptions", "_StackOptions")


@dataclass(frozen=True, kw_only=True)
class _CoderOptions:
    """``dictionary`` in ``cfg.json`` of a coder; the order of the fields is that of the file."""

    d_in: int
    d_sae: int
    d_out: int
    activation: dict[str, Any]
    b_dec: BiasMode = "input_and_output"
    skip: bool = False
    token_scaling: TokenScaling = "none"
    read_widths: tuple[int, ...] = ()
    write_widths: tuple[int, ...] = ()
    causal: bool = False
    decoder_init: str | None = None
    decoder_init_norm: float | None = None
    encoder_init: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    dtype: str = "float32"
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class _StackOptions:
    """The same of a stack."""

    read_widths: tuple[int, ...]
    write_widths: tuple[int, ...]
    d_sae: int
    activation: dict[str, Any]
    tied: Tied = "none"
    token_scaling: TokenScaling = "none"
    hook_name: str | None = None
    hook_name_out: str | None = None
    dtype: str = "float32"
    seed: int | None = None


@final
@dataclass(frozen=True)
class NativeFormat:
    """A folder of this library's own; see the head of the file."""

    name: str = "monosema"
    files: Mapping[str, str] = field(
        default_factory=lambda: {
            CONFIG_FILE: "a dictionary's kind, widths, activation, sites and scaling; its metadata is kept as it is, "
            "and MODEL, TEXT and STREAM of it are used by those who ask for its model and text",
            WEIGHTS_FILE: "a dictionary's tensors",
            SPARSITY_FILE: "densities of latents",
        }
    )

    def claims(self, place: Path) -> bool:
        return peek(place / CONFIG_FILE).get("architecture") == ARCHITECTURE

    def read(self, place: Path) -> DictionarySpec:
        where = place / CONFIG_FILE
        config = read_json(where)
        require_version(config, VERSION, where)
        kind, plain = config.get("kind"), config.get("dictionary")
        if kind not in ("coder", "stack") or not isinstance(plain, dict):
            raise FileError(f"{where} does not describe a dictionary")
        metadata = checked_metadata(config.get("metadata"), where)
        tensors = read_tensors(place / WEIGHTS_FILE)
        read = _read_coder if kind == "coder" else _read_stack
        spec = read(plain, FileTensors(tensors, place / WEIGHTS_FILE), where)
        return replace(spec, metadata=metadata, log10_density=read_density(place))

    def can_hold(self, spec: DictionarySpec) -> Fit:
        first, *others = spec.parts
        if first.trained is None or first.trained.tensors is None:
            return Fit("it does not say which activation its latents were trained with")
        if spec.kind == "coder" and others:
            return Fit("it is no stack and has several groups of latents")
        alike = (first.trained.config, first.token_scaling, first.d_sae)
        if any(
            each.trained is None or (each.trained.config, each.token_scaling, each.d_sae) != alike for each in others
        ):
            return Fit("the layers of a stack must have one activation, one scaling of tokens and as many latents each")
        return Fit()

    def write(self, spec: DictionarySpec, folder: Path) -> None:
        write_safetensors(folder / WEIGHTS_FILE, dict(_named_tensors(spec)))
        write_density(folder, spec.log10_density)
        options = to_plain(_coder_options(spec) if spec.kind == "coder" else _stack_options(spec))
        body = {"architecture": ARCHITECTURE, "version": VERSION, "kind": spec.kind, "dictionary": options}
        write_json(folder / CONFIG_FILE, {**body, "metadata": dict(spec.metadata)})


FORMAT = NativeFormat()


# -- writing


def _named_tensors(spec: DictionarySpec) -> Iterator[tuple[str, Tensor]]:
    for number, part in enumerate(spec.parts):
        prefix = "" if spec.kind == "coder" else f"layers.{number}."
        assert part.trained is not None and part.trained.tensors is not None
        named = {
            "W_enc_rows": part.W_enc.T,
            "W_dec": part.W_dec,
            "b_enc": part.b_enc,
            "b_dec": part.b_dec,
            "b_dec_in": part.b_dec_in,
            "W_skip": part.W_skip,
            **{_ACTIVATION + name: tensor for name, tensor in part.trained.tensors.items()},
        }
        yield from ((prefix + name, tensor) for name, tensor in named.items() if tensor is not None)
    if spec.b_dec is not None:
        yield "b_dec", spec.b_dec


def _coder_options(spec: DictionarySpec) -> _CoderOptions:
    (part,) = spec.parts
    assert part.trained is not None
    return _CoderOptions(
        d_in=part.d_in,
        d_sae=part.d_sae,
        d_out=part.d_out,
        activation=dict(part.trained.config),
        b_dec=part.bias_mode,
        skip=part.W_skip is not None,
        token_scaling=part.token_scaling,
        read_widths=_widths(spec.reads),
        write_widths=_widths(spec.writes),
        causal=part.causal,
        hook_name=joined(spec.reads),
        hook_name_out=joined(spec.writes),
        dtype=spec.dtype,
        **spec.start,
    )


def _stack_options(spec: DictionarySpec) -> _StackOptions:
    first = spec.parts[0]
    assert first.trained is not None
    return _StackOptions(
        read_widths=_widths(spec.reads),
        write_widths=_widths(spec.writes),
        d_sae=first.d_sae,
        activation=dict(first.trained.config),
        tied=spec.tied,
        token_scaling=first.token_scaling,
        hook_name=joined(spec.reads),
        hook_name_out=joined(spec.writes),
        dtype=spec.dtype,
        seed=spec.start.get("seed"),
    )


def _widths(sites: tuple[SiteSpec, ...]) -> tuple[int, ...]:
    return tuple(site.width for site in sites)


# -- reading


def _options(cls: type[Options], plain: Mapping[str, Any], where: Path) -> Options:
    try:
        return from_plain(cls, plain)
    except ConfigError as error:
        raise FileError(f"{where} holds no dictionary that can be used: {error}") from error


def _read_coder(plain: Mapping[str, Any], tensors: FileTensors, where: Path) -> DictionarySpec:
    options = _options(_CoderOptions, plain, where)
    d_in, d_sae, d_out = options.d_in, options.d_sae, options.d_out
    reads, writes = options.read_widths or (d_in,), options.write_widths or (d_out,)
    tensors.require_sites(read_widths=reads, write_widths=writes)
    part = PartSpec(
        W_enc=tensors.take("W_enc_rows", d_sae, d_in).T,
        W_dec=tensors.take("W_dec", d_sae, d_out),
        b_enc=tensors.take_if_there("b_enc", d_sae),
        b_dec=None if options.b_dec == "none" else tensors.take("b_dec", d_out),
        b_dec_in=tensors.take("b_dec_in", d_in) if options.b_dec == "separate" else None,
        W_skip=tensors.take("W_skip", d_in, d_out) if options.skip else None,
        subtracts_b_dec=options.b_dec == "input_and_output",
        trained=TrainedActivation(config=options.activation, tensors=tensors.take_below(_ACTIVATION)),
        token_scaling=options.token_scaling,
        causal=options.causal,
        reads=tuple(range(len(reads))),
        writes=tuple(range(len(writes))),
    )
    tensors.require_none_left()
    start = {name: value for name in _START if (value := getattr(options, name)) is not None}
    return DictionarySpec(
        kind="coder",
        parts=(part,),
        reads=sites_of(options.hook_name, reads),
        writes=sites_of(options.hook_name_out, writes),
        dtype=options.dtype,
        start=start,
    )


def _read_stack(plain: Mapping[str, Any], tensors: FileTensors, where: Path) -> DictionarySpec:
    options = _options(_StackOptions, plain, where)
    reads, writes = options.read_widths, options.write_widths
    tensors.require_sites(read_widths=reads, write_widths=writes)
    if not reads or len(reads) != len(writes):
        raise FileError(f"{where}: a stack writes as many sites as it reads, got {len(reads)} and {len(writes)}")
    parts = []
    for number, width in enumerate(reads):
        prefix = f"layers.{number}."
        W_enc_rows = tensors.take(f"{prefix}W_enc_rows", options.d_sae, width)
        later = writes[number : number + 1 if options.tied == "per_source" else None]
        part = PartSpec(
            W_enc=W_enc_rows.T,
            W_dec=tensors.take(f"{prefix}W_dec", options.d_sae, sum(later)),
            b_enc=tensors.take_if_there(f"{prefix}b_enc", options.d_sae),
            trained=TrainedActivation(config=options.activation, tensors=tensors.take_below(prefix + _ACTIVATION)),
            token_scaling=options.token_scaling,
            reads=(number,),
            writes=tuple(range(number, len(writes))),
        )
        parts.append(part)
    b_dec = tensors.take("b_dec", sum(writes))
    tensors.require_none_left()
    return DictionarySpec(
        kind="stack",
        parts=tuple(parts),
        reads=sites_of(options.hook_name, reads),
        writes=sites_of(options.hook_name_out, writes),
        dtype=options.dtype,
        b_dec=b_dec,
        tied=options.tied,
        start={} if options.seed is None else {"seed": options.seed},
    )
