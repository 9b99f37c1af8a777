"""Dictionaries as ``DictionarySpec``, and back."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from monosema.coders import (
    CoderConfig,
    CrossLayerTranscoder,
    Dictionary,
    SparseCoder,
    StackConfig,
    TrainableDictionary,
)
from monosema.coders.parts import Part
from monosema.coders.trainable import require_sparse_coders
from monosema.core.config import to_plain
from monosema.core.errors import FileError
from monosema.formats import DictionarySpec, PartSpec
from monosema.formats.spec import joined, sites_of
from monosema.hub.rules import activation_of, fill_activation_, saved_activation, saved_rule

_START = ("decoder_init", "decoder_init_norm", "encoder_init", "seed")
"""Options of a config that its weights started from, and that training it further reads."""


def to_spec(coder: Dictionary, log10_density: Tensor | None = None) -> DictionarySpec:
    """``coder`` as plain values and its tensors, which are shared.

    Raises ``ConfigError`` where it infers by a threshold that is not known yet, and ``CapabilityError`` for a
    dictionary that is not made of sparse coders.
    """
    coder = require_sparse_coders(coder, "saved")
    kind = coder.saved_kind
    config, plain = coder.config, to_plain(coder.config)
    return DictionarySpec(
        kind=kind,
        parts=tuple(_part_spec(part, coder) for part in coder.parts),
        reads=sites_of(coder.hook_name, config.read_widths),
        writes=sites_of(coder.hook_name_out, config.write_widths),
        dtype=config.dtype,
        b_dec=_detached(coder.b_dec) if kind == "stack" else None,
        tied=plain.get("tied", "none"),
        start={name: plain[name] for name in _START if name in plain},
        metadata={key: value for key, value in coder.metadata.items() if key != "log10_density"},
        log10_density=log10_density,
    )


def from_spec(spec: DictionarySpec) -> TrainableDictionary:
    """The dictionary that computes what ``spec`` says; ``FileError`` where its values do not fit together."""
    coder = _built(spec)
    with torch.no_grad():
        for part, given in zip(coder.parts, spec.parts, strict=True):
            _fill_(part.coder, given)
        if spec.b_dec is not None and coder.b_dec is not None:
            _copy_(coder.b_dec, spec.b_dec, "b_dec")
    coder.is_trained = True
    coder.requires_grad_(False)
    return coder


def _part_spec(part: Part[SparseCoder], whole: Dictionary) -> PartSpec:
    coder = part.coder
    return PartSpec(
        W_enc=coder.W_enc_rows.detach().T,
        W_dec=coder.W_dec.detach(),
        b_enc=_detached(coder.b_enc),
        b_dec=_detached(coder.b_dec),
        b_dec_in=_detached(coder.b_dec_in),
        W_skip=_detached(coder.W_skip),
        subtracts_b_dec=coder.config.b_dec == "input_and_output",
        rule=saved_rule(coder),
        trained=saved_activation(coder),
        token_scaling=coder.config.token_scaling,
        causal=coder.config.causal,
        reads=_sites_in((part.read,), whole.read_widths),
        writes=_sites_in(part.writes, whole.write_widths),
    )


def _sites_in(columns: tuple[slice, ...], widths: tuple[int, ...]) -> tuple[int, ...]:
    """The sites, by their place, whose columns are among ``columns``."""
    stops = itertools.accumulate(widths)
    ranges = [(stop - width, stop) for stop, width in zip(stops, widths, strict=True)]
    return tuple(
        place
        for place, (start, stop) in enumerate(ranges)
        if any(each.start <= start and stop <= each.stop for each in columns)
    )


def _built(spec: DictionarySpec) -> TrainableDictionary:
    """A dictionary of the shapes and options of ``spec``, with weights of its own."""
    first, *others = spec.parts
    activation = activation_of(first)
    metadata = dict(spec.metadata)
    if spec.log10_density is not None:
        metadata["log10_density"] = spec.log10_density
    read_widths, write_widths = (tuple(site.width for site in sites) for sites in (spec.reads, spec.writes))
    if spec.kind == "coder":
        if others:
            raise FileError("it is no stack and has several groups of latents")
        config = CoderConfig(
            d_in=first.d_in,
            d_sae=first.d_sae,
            d_out=first.d_out,
            activation=activation,
            b_dec=first.bias_mode,
            skip=first.W_skip is not None,
            token_scaling=first.token_scaling,
            read_widths=read_widths,
            write_widths=write_widths,
            causal=first.causal,
            hook_name=joined(spec.reads),
            hook_name_out=joined(spec.writes),
            dtype=spec.dtype,
            **spec.start,
        )
        return SparseCoder(config, metadata=metadata)
    if any((activation_of(each), each.token_scaling) != (activation, first.token_scaling) for each in others):
        raise FileError("the layers of a stack must have one activation and one scaling of tokens")
    stack = StackConfig(
        read_widths=read_widths,
        write_widths=write_widths,
        d_sae=first.d_sae,
        activation=activation,
        tied=spec.tied,
        token_scaling=first.token_scaling,
        hook_name=joined(spec.reads),
        hook_name_out=joined(spec.writes),
        dtype=spec.dtype,
        seed=spec.start.get("seed", 0),
    )
    if len(spec.parts) != len(read_widths):
        raise FileError(f"a stack has a layer for each site read, got {len(spec.parts)} and {len(read_widths)}")
    return CrossLayerTranscoder(stack, metadata=metadata)


def _fill_(coder: SparseCoder, given: PartSpec) -> None:
    """Copy the values of ``given`` into ``coder`` in place."""
    _copy_(coder.W_enc_rows, given.W_enc.T, "W_enc")
    _copy_(coder.W_dec, given.W_dec, "W_dec")
    for name in ("b_enc", "b_dec", "b_dec_in", "W_skip"):
        own, value = getattr(coder, name), getattr(given, name)
        if (own is None) != (value is None):
            raise FileError(f"the file's tensors do not fit its config: it has {'a' if own is None else 'no'} {name}")
        if own is not None:
            _copy_(own, value, name)
    fill_activation_(coder.activation, given)


def _copy_(place: Tensor, value: Tensor, name: str) -> None:
    if value.shape != place.shape:
        raise FileError(
            f"the file's tensors do not fit its config: {name} is {list(value.shape)}, not {list(place.shape)}"
        )
    place.copy_(value)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
