"""The replaced run: every coder in its MLP's place, reading what the replaced layers before it have made of the stream.

Shape letters: B contexts, T positions; n counts the positions of a batch that are not special.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, UserError
from monosema.evaluation.sites import require_writable, sites_of
from monosema.metrics import ReconstructionSums, SparsitySums, require_finite
from monosema.models import LanguageModel
from monosema.models.hooks import EditFunction
from monosema.models.language_model import SiteName

Edits = Mapping[SiteName, EditFunction]
"""By hook name, what is made of a site's value ``[B, T, width]`` in one run."""


@dataclass(frozen=True)
class Layer:
    """One site replaced, and the latents that read beside it."""

    owner: int
    """Which of the dictionaries."""
    number: int
    """Which of its groups of latents: 0 but in a cross-layer transcoder."""
    read: str
    """The site its latents read."""
    written: str
    """The site that becomes the dictionary's output."""
    columns: slice
    """That site in the dictionary's output."""

    @property
    def title(self) -> str:
        """Both sites."""
        return f"{self.read!r} -> {self.written!r}"


@dataclass(frozen=True)
class Replacement:
    """Dictionaries and the sites that they take over."""

    coders: tuple[Dictionary, ...]
    """The dictionaries."""
    layers: tuple[Layer, ...]
    """A layer for each site written, in the dictionaries' order."""

    def encoder(self, layer: Layer) -> Dictionary:
        """The dictionary of the layer's latents."""
        return self.coders[layer.owner].parts[layer.number].coder

    def zeros(self, counted: Tensor) -> Edits:
        """The edits of the ablated run: zero in the place of every site written, at ``counted [B, T]``."""

        def zero(value: Tensor) -> Tensor:
            return value.masked_fill(counted.to(value.device).unsqueeze(-1), 0.0)

        return dict.fromkeys((layer.written for layer in self.layers), zero)


def replacement_of(coders: Sequence[Dictionary], model: LanguageModel) -> Replacement:
    """Who takes over what.

    Raises ``ConfigError`` where there is no coder, two write one site, or one joins several sites in one group of
    latents; ``UserError`` where a site cannot be edited; and what ``sites_of`` raises.
    """
    if not coders:
        raise ConfigError("no coder given: name at least one transcoder or cross-layer transcoder")
    layers: list[Layer] = []
    for owner, coder in enumerate(coders):
        sites = sites_of(coder, {"": model}, to_be_written=False)
        if len(sites.read + sites.written) > 2 and not coder.is_layered:
            raise ConfigError(
                f"one group of latents joins several sites, {coder.hook_name!r} -> {coder.hook_name_out!r}, so it can "
                "take no site's place; give one coder for each site, or a cross-layer transcoder"
            )
        stop = 0
        for number, (read, written, width) in enumerate(
            zip(sites.read, sites.written, sites.widths_written, strict=True)
        ):
            read, written = sites.places[read][1], sites.places[written][1]
            start, stop = stop, stop + width
            for name in (read, written):
                require_writable(
                    model.site(name), model, "so no coder can act there while the model runs", "choose another site"
                )
            if written in (layer.written for layer in layers):
                raise ConfigError(f"two coders write {written!r}; give one for each site")
            layers.append(Layer(owner, number, read, written, slice(start, stop)))
    return Replacement(tuple(coders), tuple(layers))


@dataclass(frozen=True)
class LayerSums:
    """What is summed over the tokens of one layer; two add to the sums of both."""

    reconstruction: ReconstructionSums
    """Of the clean run's site and what was written in the replaced run."""
    sparsity: SparsitySums
    """Of the latents in the replaced run."""

    def __add__(self, other: LayerSums) -> LayerSums:
        return LayerSums(self.reconstruction + other.reconstruction, self.sparsity + other.sparsity)


@final
class ReplacedRun:
    """One forward pass with the dictionaries in place; ``edits`` once, then ``sums``.

    Where a site is read, its latents are encoded and what they write is added to the dictionary's output, which starts
    at its bias; where a site is written, its columns of that sum take the site's place. Special positions keep what the
    model itself computes there in this run.
    """

    def __init__(self, replacement: Replacement, counted: Tensor, clean: Mapping[str, Tensor], where: str):
        """For the positions ``counted [B, T]``; ``clean [B, T, width]`` are the values of the sites written."""
        self._replacement, self._counted, self._clean, self._where = replacement, counted, clean, where
        self._outputs = [_without_latents(coder, int(counted.sum())) for coder in replacement.coders]
        self._sparsity: dict[str, SparsitySums] = {}  # by the layer's site written, of which there is one
        self._reconstruction: dict[str, ReconstructionSums] = {}

    def edits(self) -> Edits:
        """By site, what happens there: what is written, and everything that reads it. An SAE reads first."""
        functions: dict[str, list[EditFunction]] = {}
        layers = self._replacement.layers
        for layer in layers:
            if layer.read == layer.written:
                functions.setdefault(layer.read, []).append(self._bound(self._read, layer))
        for layer in layers:
            functions.setdefault(layer.written, []).append(self._bound(self._write, layer))
        for layer in layers:
            if layer.read != layer.written:
                functions.setdefault(layer.read, []).append(self._bound(self._read, layer))
        return {name: _in_turn(each) for name, each in functions.items()}

    def sums(self) -> tuple[LayerSums, ...]:
        """Of each layer, after the pass. Raises ``UserError`` where the model did not run a site's module."""
        layers = self._replacement.layers
        missing = [layer.title for layer in layers if layer.written not in self._reconstruction]
        if missing:
            raise UserError(f"the forward pass did not run the modules of {', '.join(missing)}")
        return tuple(LayerSums(self._reconstruction[each.written], self._sparsity[each.written]) for each in layers)

    @staticmethod
    def _bound(act: Callable[[Layer, Tensor], Tensor], layer: Layer) -> EditFunction:
        return lambda value: act(layer, value)

    def _read(self, layer: Layer, value: Tensor) -> Tensor:
        if layer.written in self._sparsity:
            raise UserError(f"{layer.read!r} runs several times in one forward pass, so no coder can take its place")
        part = self._replacement.coders[layer.owner].parts[layer.number]
        rows = value[self._counted.to(value.device)]
        require_finite(f"activations read at {layer.read!r} in the replaced run, {self._where}", rows)
        x = rows.to(device=part.coder.device, dtype=part.coder.dtype)
        latents = part.coder.encode_sparse(x)
        part.add_to_(self._outputs[layer.owner], part.coder.decode(latents, x))
        self._sparsity[layer.written] = SparsitySums.of(latents)
        return value

    def _write(self, layer: Layer, value: Tensor) -> Tensor:
        for other in self._replacement.layers:
            is_source = other.owner == layer.owner and other.number <= layer.number
            if is_source and other.written not in self._sparsity:
                raise UserError(
                    f"the model computes {layer.written!r} before {other.read!r}, from which it is to be written; a "
                    "coder must read before it writes"
                )
        x_hat = self._outputs[layer.owner][:, layer.columns]
        require_finite(f"what is written to {layer.written!r}, {self._where}", x_hat)
        clean = self._clean[layer.written]
        target = clean[self._counted.to(clean.device)].to(x_hat.device)
        self._reconstruction[layer.written] = ReconstructionSums.of(target, x_hat)
        new = value.clone()
        new[self._counted.to(value.device)] = x_hat.to(device=value.device, dtype=value.dtype)
        return new


def _without_latents(coder: Dictionary, n: int) -> Tensor:
    """``[n, d_out]``: what is written beside the parts; nothing where the one part is the whole dictionary."""
    out = torch.zeros(n, coder.d_out, device=coder.device, dtype=coder.dtype)
    return out + coder.without_latents() if coder.is_layered else out


def _in_turn(functions: Sequence[EditFunction]) -> EditFunction:
    def apply(value: Tensor) -> Tensor:
        for function in functions:
            value = function(value)
        return value

    return apply
