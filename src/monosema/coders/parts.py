"""``Part``: one group of latents in a dictionary, and the columns it reads and writes; ``Origin``: what was loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

C_co = TypeVar("C_co", covariant=True)
"""The class of a part's dictionary: ``Part[SparseCoder]`` in dictionaries that train."""


@dataclass(frozen=True)
class Origin:
    """Where a dictionary was loaded from."""

    source: str
    """Folder or repository."""
    name: str | None
    """Dictionary inside it."""
    hook_names: tuple[str | None, str | None]
    """Sites it read and wrote there."""


@dataclass(frozen=True)
class Place:
    """Where a latent is in a dictionary of parts."""

    part: int
    """Number of the part."""
    index: int
    """The latent's number inside the part."""


@dataclass(frozen=True)
class Places:
    """Where several latents are."""

    parts: Tensor
    """``[n]`` int64: number of each latent's part."""
    indices: Tensor
    """``[n]`` int64: each latent's number inside its part."""


@dataclass(frozen=True)
class Part(Generic[C_co]):
    """One group of latents. An SAE is one part; a cross-layer transcoder has one for each layer.

    A part that is not the whole dictionary writes nothing where none of its latents is active. The dictionary writes
    the sum of its parts' outputs and of ``Dictionary.without_latents``.
    """

    prefix: str
    """What its parameters' names begin with in the dictionary; empty for the dictionary itself."""
    coder: C_co
    """The dictionary of these latents alone; the dictionary itself where it has one part."""
    read: slice
    """The columns of the dictionary's input that it reads."""
    writes: tuple[slice, ...]
    """The columns of the dictionary's output that it adds to; several where one decoder serves several sites."""
    latents: range
    """The numbers of its latents in the dictionary."""

    @property
    def is_whole(self) -> bool:
        """Whether the part is the dictionary itself."""
        return self.prefix == ""

    def take(self, g_out: Tensor) -> Tensor:
        """The gradient ``[..., d_out of the part]`` of its output, from that ``[..., d_out]`` of the dictionary's."""
        if len(self.writes) == 1:
            whole = self.writes[0] == slice(0, g_out.shape[-1])
            return g_out if whole else g_out[..., self.writes[0]].contiguous()
        first, *others = (g_out[..., write] for write in self.writes)
        total = first.clone()
        for other in others:
            total += other
        return total

    def add_to_(self, out: Tensor, part_out: Tensor) -> None:
        """Add the part's output to the dictionary's in place."""
        for write in self.writes:
            out[..., write] += part_out
