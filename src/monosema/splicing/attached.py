"""A dictionary as what ``models.splice`` can put into a forward pass: a group of latents for each part.

Shape letters: n rows, I width of the sites that a part reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, final

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.coders.sites import join_names
from monosema.core.errors import ShapeError
from monosema.models import Site
from monosema.splicing.forms import LatentForm, Z


@dataclass(frozen=True)
class _Target:
    """A site that a part writes."""

    written: int
    """The site's number among those written."""
    columns: slice
    """The site in the part's output."""


@final
class Attached(Generic[Z]):
    """A dictionary and its sites in one model; a ``Spliceable``.

    Each part encodes by itself, as soon as what it reads is there, and adds what it decodes to the sites that it
    writes. Rows are cast to the dictionary's dtype and device.
    """

    def __init__(
        self, dictionary: Dictionary, reads: Sequence[Site], writes: Sequence[Site], form: LatentForm[Z]
    ) -> None:
        """``reads`` and ``writes`` are the dictionary's sites, in the order in which they lie side by side.

        ``ShapeError`` where they are not as wide as its input and its output.
        """
        self._dictionary, self._parts = dictionary, dictionary.parts
        self._form: LatentForm[Z] = form
        self._columns = _columns(writes, dictionary.d_out, "d_out")
        read = _columns(reads, dictionary.d_in, "d_in")
        self._writes = tuple(site.name for site in writes)
        self._reads = tuple(
            tuple(site.name for site, own in zip(reads, read, strict=True) if _is_inside(own, part.read))
            for part in self._parts
        )
        self._targets = tuple(tuple(self._find_targets(part.writes)) for part in self._parts)

    @property
    def reads(self) -> tuple[tuple[str, ...], ...]:
        """By part, the sites that it reads."""
        return self._reads

    @property
    def writes(self) -> tuple[str, ...]:
        """The sites written."""
        return self._writes

    def sources(self, written: int) -> list[int]:
        """The parts that write a site."""
        return [group for group, own in enumerate(self._targets) if written in [each.written for each in own]]

    def bias(self, written: int, n: int) -> Tensor:
        """``[n, width]``: what is written beside the parts; zeros where the one part is the whole dictionary."""
        columns = self._columns[written]
        zeros = torch.zeros(
            n, columns.stop - columns.start, device=self._dictionary.device, dtype=self._dictionary.dtype
        )
        return zeros + self._dictionary.without_latents()[columns] if self._dictionary.is_layered else zeros

    def encode(self, group: int, x: Tensor) -> Z:
        """A part's latents of the rows ``x [n, I]``."""
        return self._form.encode(self._parts[group].coder, self._cast(x))

    def decode(self, group: int, latents: Z, x: Tensor) -> list[tuple[int, Tensor]]:
        """What they add to each site that the part writes, its bias and its skip connection included."""
        out = self._parts[group].coder.decode(latents, self._cast(x))
        return [(each.written, out[:, each.columns]) for each in self._targets[group]]

    def touched(self, before: Z, after: Z) -> Tensor:
        """``[n]`` bool: rows whose latents differ."""
        return self._form.touched(before, after)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(device=self._dictionary.device, dtype=self._dictionary.dtype)

    def _find_targets(self, writes: Iterable[slice]) -> Iterable[_Target]:
        for write in writes:
            for number, own in enumerate(self._columns):
                if _is_inside(own, write):
                    yield _Target(number, slice(own.start - write.start, own.stop - write.start))


def _columns(sites: Sequence[Site], width: int, kind: str) -> list[slice]:
    """Where each site lies in a row of all of them."""
    stops = list(accumulate(site.width for site in sites))
    if not stops or stops[-1] != width:
        names = join_names(site.name for site in sites)
        raise ShapeError(f"the dictionary's {kind} is {width}, but {names!r} is {stops[-1] if stops else 0} wide")
    return [slice(stop - site.width, stop) for site, stop in zip(sites, stops, strict=True)]


def _is_inside(inner: slice, outer: slice) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop
