"""Which columns of a stream's rows a coder reads and writes, where several coders share one stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, ShapeError, unknown_name
from monosema.core.words import counted
from monosema.data.sites import RowLayout, names_site


@dataclass(frozen=True)
class Columns:
    """A coder's view of the rows."""

    layout: RowLayout
    """Its own sites."""
    slices: tuple[slice, ...] | None
    """Their columns in the stream's rows; None for all of them in order."""
    hook_name: str
    """What the coder calls the sites it reads from now on."""
    hook_name_out: str
    """What it calls the sites it writes."""

    def of(self, rows: Tensor) -> Tensor:
        """The coder's rows ``[n, d]``."""
        if self.slices is None:
            return rows
        parts = [rows[:, part] for part in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def record(self, record: dict[str, Any]) -> dict[str, Any]:
        """The stream's record with the coder's own sites."""
        return record if self.slices is None else {**record, **self.layout.record()}


def columns_of(coder: Dictionary, layout: RowLayout, *, at_other_sites: bool = False) -> Columns:
    """The columns of ``layout`` for the sites that ``coder`` names; all of them where it names none.

    A coder keeps its names where the source has none (plain rows), and takes the source's where it has none itself.
    Raises ``ConfigError`` where the coder is for other sites than the source's (but for ``at_other_sites``) or writes
    others than it reads and the source does not, ``UnknownNameError`` for one of its sites that the source does not
    give, ``ShapeError`` where widths differ.
    """
    sites = dict(layout.reads + layout.writes)
    theirs = coder.hook_name, coder.hook_name_out
    own = _own_sites(coder, layout, sites, at_other_sites)
    if coder.reconstructs != own.is_autoencoder and None not in theirs:
        what, fix = "writes other sites than it reads", "name what it writes with targets="
        if coder.reconstructs:
            what, fix = "reconstructs what it reads", "leave out targets="
        here = _shown(own.read_name, own.write_name)
        raise ConfigError(f"the coder {what} ({_shown(*theirs)}), the source's sites are {here}; {fix}")
    if (coder.d_in, coder.d_out) != (own.d_in, own.d_out):
        raise ShapeError(
            f"the coder reads {coder.d_in} and writes {counted(coder.d_out, 'dimension')}; the source gives {own.d_in} "
            f"({own.read_name}) and {own.d_out} ({own.write_name}). Make the coder with d_in={own.d_in}"
            + (f", d_out={own.d_out}" if own.d_in != own.d_out or not own.is_autoencoder else "")
        )
    for kind, widths, each in (
        ("read", coder.read_widths, own.reads),
        ("written", coder.write_widths, own.writes),
    ):
        if len(widths) > 1 and own.has_names and widths != tuple(width for _, width in each):
            raise ShapeError(f"the coder's sites {kind} are {widths} wide, the source's {[width for _, width in each]}")
    given = own.read_name, own.write_name
    names = [
        mine if mine and names_site(mine) and not names_site(name) else name
        for mine, name in zip(theirs, given, strict=True)
    ]
    if own == layout:
        return Columns(layout, None, *names)
    starts, place = {}, 0
    for name in layout.hook_names:
        starts[name] = slice(place, place + sites[name])
        place += sites[name]
    return Columns(own, tuple(starts[name] for name in own.hook_names), *names)


def _own_sites(coder: Dictionary, layout: RowLayout, sites: Mapping[str, int], at_other_sites: bool) -> RowLayout:
    """The source's sites that ``coder`` names, or all of them."""
    names = [[str(site) for site in sites_of] or [""] for sites_of in (coder.reads, coder.writes)]
    listed = names[0] + names[1]
    missing = [name for name in listed if name not in sites]
    if not missing:
        return RowLayout(*(tuple((name, sites[name]) for name in each) for each in names))
    strange = [name for name in missing if names_site(name)]
    if not strange or at_other_sites or not layout.has_names:
        return layout
    if len(missing) < len(listed):
        raise unknown_name("site of the stream", strange[0], sites)
    there = _shown(coder.hook_name, coder.hook_name_out)
    raise ConfigError(
        f"the coder is for {there}, the source's sites are {_shown(layout.read_name, layout.write_name)}; give a "
        "source of the coder's sites (a stream's hook_names, or the names of the arrays), or a coder made without "
        "hook_name or with the source's, or train(..., start_at_other_sites=True), which trains this one there and "
        "names it by that"
    )


def _shown(read: str | None, written: str | None) -> str:
    return f"{read}" if read == written else f"{read} -> {written}"
