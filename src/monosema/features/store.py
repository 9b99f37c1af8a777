"""``FeatureStore``: what one pass over the text found out about every latent of a coder.

Shape letters: F latents, K contexts kept per latent, C contexts kept in all, T tokens of a context.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsIndex

import torch
from torch import Tensor

from monosema.coders.sites import join_names, split_names
from monosema.core.errors import UserError
from monosema.core.words import counted
from monosema.features.clarity import clarity
from monosema.features.feature import Feature, FeatureContext, Histogram, LogitEffect, TokenSpan
from monosema.features.logits import ExtremeLogits
from monosema.features.statistics import LatentNumbers
from monosema.features.windows import Windows

SortKey = Literal["index", "clarity", "density", "maximum", "mean"]
"""A number that latents can be ordered by."""

_BLOCK = re.compile(r"(?:^|:)blocks\.(\d+)\.")
_MOST_SITES = 2
"""Sites that are named one by one."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which coder was read, on what."""

    model: str
    """Name of the language model."""
    hook_name: str
    """Site read."""
    hook_name_out: str
    """Site written; equal to ``hook_name`` for an SAE."""
    split: str
    """Name of the split: ``heldout``, ``train``."""
    tokens_fingerprint: str
    """sha256 of the whole split."""
    n_contexts: int
    """Contexts read, spread evenly over the split."""
    context_size: int
    """Tokens of a context."""
    n_special_positions: int
    """Positions left out because they hold special tokens."""
    model_fingerprint: str | None = None
    """That of the model's weights (of several models', behind their names); None where they could not be read."""
    notes: tuple[str, ...] = ()
    """What a reader of the features must know of coder and model."""
    n_outlier_positions: int = 0
    """Positions left out because the norm there is far above the median."""
    architecture: str = ""
    """Activation and variant in words: ``BatchTopK SAE``; empty where not recorded."""
    k: float | None = None
    """Active latents per token that the activation was trained for; None where it names none."""
    is_stack: bool = False
    """Whether it is a cross-layer transcoder: equally many latents for each site read, numbered through."""

    @property
    def layer_sites(self) -> tuple[tuple[str, str], ...]:
        """Of a cross-layer transcoder, what the latents of each layer read and write; else empty."""
        if not self.is_stack:
            return ()
        written = split_names(self.hook_name_out)
        return tuple((read, join_names(written[layer:])) for layer, read in enumerate(split_names(self.hook_name)))

    @property
    def site(self) -> str:
        """Sites and model in words."""
        return f"{_sites_in_words(self.hook_name, self.hook_name_out)} ({self.model})"

    def layer_of(self, latent: int, d_sae: int) -> int | None:
        """The place in ``layer_sites`` of one of ``d_sae`` latents; None where there are no layers."""
        return latent * len(self.layer_sites) // d_sae if self.layer_sites else None

    def layer_name(self, layer: int) -> str:
        """``layer 2`` for what block 2 computes; the site read where that names no block, or not this one alone."""
        blocks = [found[1] if (found := _BLOCK.search(read)) else None for read, _ in self.layer_sites]
        own = blocks[layer]
        return self.layer_sites[layer][0] if own is None or blocks.count(own) > 1 else f"layer {own}"

    def site_of(self, latent: int, d_sae: int) -> str:
        """``site`` of one latent, which reads and writes less than the whole dictionary where there are layers."""
        layer = self.layer_of(latent, d_sae)
        if layer is None:
            return self.site
        return f"{_sites_in_words(*self.layer_sites[layer])} ({self.model})"


@dataclass(frozen=True, eq=False)
class ContextTexts:
    """The kept contexts as ids and as text."""

    context: Tensor
    """[C] int64, ascending: number of each kept context in its split."""
    token_ids: Tensor
    """[C, T] int32."""
    text_ids: Tensor
    """[C, T] int32: index in ``vocabulary``; -1 for a token that belongs to the group of the one before, and for
    padding."""
    vocabulary: tuple[str, ...]
    """Every printable text that occurs in contexts and logits, once."""

    def rows(self, contexts: Tensor) -> Tensor:
        """Row of each context, which must be one of those kept; same shape."""
        return torch.searchsorted(self.context, contexts)


@dataclass(frozen=True)
class LatentRow:
    """One latent in a table."""

    index: int
    """The latent."""
    clarity: float
    """``FeatureStore.clarity`` of it."""
    count: int
    """Usable tokens on which it fired."""
    density: float
    """Share of the usable tokens on which it fired."""
    maximum: float
    """Largest activation."""
    mean: float
    """Mean activation over the tokens on which it fired."""
    strongest_token: str
    """Text of the token with the largest activation; empty for a latent that never fired."""
    top_logits: tuple[str, ...]
    """Texts of the tokens it promotes most; empty where logits are not defined."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureStore:
    """Numbers, best contexts and logits of every latent. Made by ``collect_features`` or ``FeatureStore.load``.

    ``store[123]`` is a ``Feature``; iteration goes over the latents that fired, and ``len`` counts those. The arrays
    behind are fields.
    """

    provenance: Provenance
    """Which coder was read, on what."""
    numbers: LatentNumbers
    """Density, maximum, mean and histogram of each latent."""
    windows: Windows
    """The best contexts of each latent."""
    texts: ContextTexts
    """Those contexts as text."""
    logits: ExtremeLogits | None
    """Top and bottom logits of each latent, where they are defined."""
    logits_note: str | None
    """Why they are not."""
    logit_texts: Mapping[int, int]
    """Index in ``texts.vocabulary`` of each token in ``logits``."""

    @property
    def d_sae(self) -> int:
        """Latents in all."""
        return self.numbers.count.numel()

    @property
    def alive(self) -> Tensor:
        """[n_alive] int64: the latents that fired, ascending."""
        return self.numbers.count.nonzero().squeeze(1)

    @cached_property
    def clarity(self) -> Tensor:
        """[F] float32, 0 to 1: how far the strongest contexts of a latent agree, less where it fires often; see
        ``features.clarity``."""
        return clarity(self)

    def __len__(self) -> int:
        return self.alive.numel()

    def __iter__(self) -> Iterator[Feature]:
        for latent in self.alive.tolist():
            yield self[latent]

    def __getitem__(self, latent: SupportsIndex) -> Feature:
        """The feature of a latent, from 0 to ``d_sae - 1``. Raises ``UserError`` for others."""
        index = operator.index(latent)
        if not 0 <= index < self.d_sae:
            raise UserError(f"latent {index} does not exist: this store has latents 0 to {self.d_sae - 1}")
        numbers = self.numbers
        count, layer = int(numbers.count[index]), self.provenance.layer_of(index, self.d_sae)
        return Feature(
            index=index,
            site=self.provenance.site_of(index, self.d_sae),
            layer=None if layer is None else self.provenance.layer_name(layer),
            count=count,
            n_tokens=numbers.n_tokens,
            density=count / numbers.n_tokens,
            maximum=float(numbers.maximum[index]),
            mean=float(numbers.mean[index]),
            histogram=Histogram(float(numbers.bin_width[index]), tuple(numbers.histogram[index].tolist())),
            top_logits=self._effects(index, "top"),
            bottom_logits=self._effects(index, "bottom"),
            logits_note=self.logits_note,
            contexts=tuple(
                self._context(index, place)
                for place, context in enumerate(self.windows.context[index].tolist())
                if context >= 0
            ),
        )

    def order(self, by: SortKey = "density", *, descending: bool = True) -> list[int]:
        """The latents that fired, ordered by a number; the lower latent first among equals."""
        alive = self.alive
        if by == "index":
            keys = alive
        else:
            numbers = self.numbers
            known = {"density": numbers.count, "maximum": numbers.maximum, "mean": numbers.mean}
            keys = (self.clarity if by == "clarity" else known[by])[alive]
        return alive[keys.sort(descending=descending, stable=True).indices].tolist()

    def table(self, sort_by: SortKey = "index", *, descending: bool | None = None) -> list[LatentRow]:
        """A row for each latent that fired. Numbers descend unless asked otherwise, indices ascend."""
        if descending is None:
            descending = sort_by != "index"
        return [self._row(latent) for latent in self.order(sort_by, descending=descending)]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a folder with ``features.safetensors`` and ``features.json``; it appears whole or not at all.

        Raises ``FileError`` where it cannot be written, or where a folder with other content stands there.
        """
        from monosema.features.saved import save_store

        return save_store(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureStore:
        """What ``save`` wrote. Raises ``FileError`` where it is missing or damaged."""
        from monosema.features.saved import load_store

        return load_store(Path(path))

    def dashboard(
        self,
        path: str | os.PathLike[str],
        *,
        latents: Sequence[int] | None = None,
        title: str | None = None,
        figures: Mapping[str, str | float | None] | None = None,
        before: int = 24,
        after: int = 12,
        contexts_per_latent: int | None = None,
    ) -> Path:
        """Write one HTML file that shows the latents that fired, works offline and asks the network for nothing.

        Args:
            path: the file; replaced whole.
            latents: only these (those that never fired are left out).
            title: heading; the site by default.
            figures: shown at the top, as ``{"FVE": report.fve, "L0": report.l0}``, beside the architecture, its k and
                the share of latents that never fired; None values are left out.
            before, after: tokens kept around the maximum of each context.
            contexts_per_latent: at most so many contexts of each latent; all by default.

        Raises:
            ConfigError: an option that makes no sense. UserError: no latent to show. FileError: cannot be written.
        """
        from monosema.features.dashboard import write_dashboard

        return write_dashboard(
            self,
            Path(path),
            latents=latents,
            title=title,
            figures=figures or {},
            before=before,
            after=after,
            contexts_per_latent=contexts_per_latent,
        )

    def __repr__(self) -> str:
        return (
            f"FeatureStore({len(self):,} of {counted(self.d_sae, 'latent')} of {self.provenance.site} fired on "
            f"{counted(self.numbers.n_tokens, 'token')})" + "".join(f"\nnote: {note}" for note in self.provenance.notes)
        )

    def _effects(self, latent: int, end: Literal["top", "bottom"]) -> tuple[LogitEffect, ...] | None:
        if self.logits is None:
            return None
        tokens, values = {
            "top": (self.logits.top_tokens, self.logits.top_values),
            "bottom": (self.logits.bottom_tokens, self.logits.bottom_values),
        }[end]
        return tuple(
            LogitEffect(token, self.texts.vocabulary[self.logit_texts[token]], value)
            for token, value in zip(tokens[latent].tolist(), values[latent].tolist(), strict=True)
        )

    def _context(self, latent: int, place: int) -> FeatureContext:
        windows, texts = self.windows, self.texts
        slot = latent * windows.context.shape[1] + place
        entries = slice(int(windows.crow[slot]), int(windows.crow[slot + 1]))
        row = texts.rows(windows.context[latent, place : place + 1])[0]
        values = torch.zeros(texts.token_ids.shape[1])
        values[windows.entry_position[entries].long()] = windows.entry_value[entries]
        return FeatureContext(
            context_id=int(windows.context[latent, place]),
            position=int(windows.position[latent, place]),
            maximum=float(windows.maximum[latent, place]),
            token_ids=texts.token_ids[row],
            values=values,
            spans=_spans(texts.text_ids[row].tolist(), values.tolist(), texts.vocabulary),
        )

    def _row(self, latent: int) -> LatentRow:
        count = int(self.numbers.count[latent])
        effects = None if self.logits is None else self.logits.top_tokens[latent].tolist()
        return LatentRow(
            index=latent,
            clarity=float(self.clarity[latent]),
            count=count,
            density=count / self.numbers.n_tokens,
            maximum=float(self.numbers.maximum[latent]),
            mean=float(self.numbers.mean[latent]),
            strongest_token=self._strongest_token(latent),
            top_logits=tuple(self.texts.vocabulary[self.logit_texts[token]] for token in effects or ()),
        )

    def _strongest_token(self, latent: int) -> str:
        context, position = int(self.windows.context[latent, 0]), int(self.windows.position[latent, 0])
        if context < 0:
            return ""
        ids = self.texts.text_ids[self.texts.rows(torch.tensor(context))]
        while ids[position] < 0:
            position -= 1
        return self.texts.vocabulary[int(ids[position])]


def _sites_in_words(read: str, written: str) -> str:
    """What is read and, where it is something else, what is written; of many sites the first and the last."""
    words = []
    for name in (read, written) if read != written else (read,):
        sites = split_names(name)
        words.append(name if len(sites) <= _MOST_SITES else f"{sites[0]} … {sites[-1]} ({counted(len(sites), 'site')})")
    return " → ".join(words)


def _spans(text_ids: list[int], values: list[float], vocabulary: tuple[str, ...]) -> tuple[TokenSpan, ...]:
    starts = [position for position, text in enumerate(text_ids) if text >= 0]
    return tuple(
        TokenSpan(vocabulary[text_ids[start]], start, stop, max(values[start:stop]))
        for start, stop in zip(starts, [*starts[1:], len(text_ids)], strict=True)
    )
