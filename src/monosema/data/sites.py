"""How the sites a coder reads and writes lie side by side in a row of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monosema.coders.sites import join_names

_PLACEHOLDERS = (None, "", "input", "target")


@dataclass(frozen=True)
class RowLayout:
    """Columns of a row ``[d]``: the sites read first, then the sites written, where those differ."""

    reads: tuple[tuple[str, int], ...]
    """(hook name, width) of each site read."""
    writes: tuple[tuple[str, int], ...]
    """(hook name, width) of each site written; equal to ``reads`` for an SAE."""

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The sites in the order of the columns, each once."""
        sites = self.reads if self.is_autoencoder else self.reads + self.writes
        return tuple(name for name, _ in sites)

    @property
    def is_autoencoder(self) -> bool:
        """Whether what is read is what is written."""
        return self.reads == self.writes

    @property
    def d_in(self) -> int:
        return sum(width for _, width in self.reads)

    @property
    def d_out(self) -> int:
        return sum(width for _, width in self.writes)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.d_in if self.is_autoencoder else self.d_in + self.d_out

    @property
    def has_names(self) -> bool:
        """Whether the sites say where they are; plain rows have an ``input`` and a ``target``."""
        return any(names_site(name) for name in self.hook_names)

    @property
    def facts(self) -> dict[str, str]:
        """The sites and their widths in words."""

        def words(sites: tuple[tuple[str, int], ...]) -> str:
            return ", ".join(f"{name} ({width:,})" if names_site(name) else f"{width:,} wide" for name, width in sites)

        return {"reads": words(self.reads), **({} if self.is_autoencoder else {"writes": words(self.writes)})}

    def record(self) -> dict[str, Any]:
        """The sites as a dictionary records them, JSON-able."""
        reads, writes = ([name for name, _ in sites] for sites in (self.reads, self.writes))
        return {"hook_names": reads, "targets": None if self.is_autoencoder else writes}

    @property
    def read_slice(self) -> slice:
        return slice(0, self.d_in)

    @property
    def write_slice(self) -> slice:
        return self.read_slice if self.is_autoencoder else slice(self.d_in, self.d_in + self.d_out)

    @property
    def read_name(self) -> str:
        """The sites read as one name, ``a+b`` where there are several."""
        return join_names(name for name, _ in self.reads)

    @property
    def write_name(self) -> str:
        return join_names(name for name, _ in self.writes)


def names_site(name: str | None) -> bool:
    """Whether a dictionary's hook name says where it reads or writes, or merely that it reads or writes."""
    return name not in _PLACEHOLDERS


def layout_of(width: int, d_in: int | None = None) -> RowLayout:
    """Layout of plain rows that come from no model: an SAE's, or inputs of ``d_in`` followed by targets."""
    if d_in is None or d_in == width:
        return RowLayout((("input", width),), (("input", width),))
    return RowLayout((("input", d_in),), (("target", width - d_in),))
