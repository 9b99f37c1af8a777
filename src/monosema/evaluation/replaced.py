"""The replaced run: every coder in its MLP's place, reading what the replaced layers before it have made of the stream.

Shape letters: B contexts, T positions; n counts the positions of a batch that are not special.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from monosema.coders import Dictionary, Latents
from monosema.coders.sites import join_names
from monosema.core.errors import ConfigError, UserError
from monosema.data.dictionary_sites import require_writable, sites_of
from monosema.metrics import ReconstructionSums, SparsitySums, require_finite
from monosema.models import LanguageModel
from monosema.models.hooks import EditFunction
from monosema.models.language_model import SiteName
from monosema.models.splice import Splice, placed
from monosema.splicing import SPARSE, Attached

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

    @property
    def title(self) -> str:
        """Both sites."""
        return f"{self.read!r} -> {self.written!r}"


@dataclass(frozen=True)
class Replacement:
    """Dictionaries and the sites that they take over."""

    coders: tuple[Dictionary, ...]
    """The dictionaries."""
    attached: tuple[Attached[Latents], ...]
    """Each at its sites in the model."""
    layers: tuple[Layer, ...]
    """A layer for each site written, in the dictionaries' order."""

    def encoder(self, layer: Layer) -> Dictionary:
        """The dictionary of the layer's latents."""
        return self.coders[layer.owner].parts[layer.number].coder

    def zeros(self, counted: Tensor) -> Edits:
        """The edits of the ablated run: zero in the place of every site written, at ``counted [B, T]``."""

        def zero(value: Tensor) -> Tensor:
            return placed(value, counted, value.new_zeros(()))

        return dict.fromkeys((layer.written for layer in self.layers), zero)


def replacement_of(coders: Sequence[Dictionary], model: LanguageModel) -> Replacement:
    """Who takes over what.

    Raises ``ConfigError`` where there is no coder, two write one site, or one joins several sites in one group of
    latents; ``UserError`` where a site cannot be edited; and what ``sites_of`` raises.
    """
    if not coders:
        raise ConfigError("no coder given: name at least one transcoder or cross-layer transcoder")
    attached: list[Attached[Latents]] = []
    layers: list[Layer] = []
    for owner, coder in enumerate(coders):
        sites = sites_of(coder, {"": model}, to_be_written=False)
        if not len(coder.parts) == len(sites.read) == len(sites.written):
            raise ConfigError(
                f"one group of latents joins several sites, {coder.hook_name!r} -> {coder.hook_name_out!r}, so it can "
                "take no site's place; give one coder for each site, or a cross-layer transcoder"
            )
        reads, writes = ([model.site(sites.places[name][1]) for name in own] for own in (sites.read, sites.written))
        attached.append(Attached(coder, reads, writes, SPARSE))
        for number, (read, written) in enumerate(zip((site.name for site in reads), attached[-1].writes, strict=True)):
            for name in (read, written):
                require_writable(
                    model.site(name), model, "so no coder can act there while the model runs", "choose another site"
                )
            if written in (layer.written for layer in layers):
                raise ConfigError(f"two coders write {written!r}; give one for each site")
            layers.append(Layer(owner, number, read, written))
    return Replacement(tuple(coders), tuple(attached), tuple(layers))


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
        self._measured = [_Measured(each, where) for each in replacement.attached]
        self._reconstruction: dict[str, ReconstructionSums] = {}

    def edits(self) -> Edits:
        """By site, what happens there: what is written, and everything that reads it. An SAE reads first."""
        splice = Splice(self._measured, error_term=False, rows=lambda _: self._counted, on_write=self._write)
        return splice.edits()

    def sums(self) -> tuple[LayerSums, ...]:
        """Of each layer, after the pass. Raises ``UserError`` where the model did not run a site's module."""
        layers = self._replacement.layers
        missing = [layer.title for layer in layers if layer.written not in self._reconstruction]
        if missing:
            raise UserError(f"the forward pass did not run the modules of {', '.join(missing)}")
        return tuple(
            LayerSums(self._reconstruction[each.written], self._measured[each.owner].sparsity[each.number])
            for each in layers
        )

    def _write(self, _: int, written: str, x_hat: Tensor) -> None:
        require_finite(f"what is written to {written!r}, {self._where}", x_hat)
        clean = self._clean[written]
        target = clean[self._counted.to(clean.device)].to(x_hat.device)
        self._reconstruction[written] = ReconstructionSums.of(target, x_hat)


@final
class _Measured:
    """A dictionary whose latents are counted as they are encoded; a ``Spliceable[Latents]``."""

    def __init__(self, attached: Attached[Latents], where: str) -> None:
        self._attached, self._where = attached, where
        self.sparsity: dict[int, SparsitySums] = {}
        """By part."""
        self.reads, self.writes, self.sources = attached.reads, attached.writes, attached.sources
        self.bias, self.decode, self.touched = attached.bias, attached.decode, attached.touched

    def encode(self, group: int, x: Tensor) -> Latents:
        read = join_names(self.reads[group])
        require_finite(f"activations read at {read!r} in the replaced run, {self._where}", x)
        latents = self._attached.encode(group, x)
        self.sparsity[group] = SparsitySums.of(latents)
        return latents
