"""``Part``: one sparse coder inside a dictionary, and the columns it reads and writes; ``Origin``: what was loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from monosema.coders.coder import SparseCoder


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
class Part:
    """A coder with one group of latents. An SAE is one part; a cross-layer transcoder has one for each layer."""

    prefix: str
    """What its parameters' names begin with in the dictionary."""
    coder: SparseCoder
    """The coder."""
    read: slice
    """The columns of the dictionary's input that it reads."""
    writes: tuple[slice, ...]
    """The columns of the dictionary's output that it adds to; several where one decoder serves several sites."""

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
