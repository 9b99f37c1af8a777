"""Which columns of a stream's rows a coder reads and writes, where several coders share one stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ShapeError, unknown_name
from monosema.data.sites import RowLayout


@dataclass(frozen=True)
class Columns:
    """A coder's view of the rows."""

    layout: RowLayout
    """Its own sites."""
    slices: tuple[slice, ...] | None
    """Their columns in the stream's rows; None for all of them in order."""

    def of(self, rows: Tensor) -> Tensor:
        """The coder's rows ``[n, d]``."""
        if self.slices is None:
            return rows
        parts = [rows[:, part] for part in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def record(self, record: dict[str, Any]) -> dict[str, Any]:
        """The stream's record with the coder's own sites."""
        if self.slices is None:
            return record
        reads, writes = ([name for name, _ in sites] for sites in (self.layout.reads, self.layout.writes))
        return {**record, "hook_names": reads, "targets": None if self.layout.is_autoencoder else writes}


def columns_of(coder: Dictionary, layout: RowLayout) -> Columns:
    """The columns of ``layout`` for the sites that ``coder`` names; all of them where it names none.

    Raises ``UnknownNameError`` for a site the stream does not give, ``ShapeError`` where widths differ.
    """
    sites = dict(layout.reads + layout.writes)
    names = [(name or "").split("+") for name in (coder.hook_name, coder.hook_name_out)]
    own = layout
    if any(name in sites for name in names[0] + names[1]):
        for name in names[0] + names[1]:
            if name not in sites:
                raise unknown_name("site of the stream", name, sites)
        own = RowLayout(*(tuple((name, sites[name]) for name in each) for each in names))
    if (coder.d_in, coder.d_out) != (own.d_in, own.d_out):
        raise ShapeError(
            f"the coder reads {coder.d_in} and writes {coder.d_out} dimensions; the source gives {own.d_in} "
            f"({own.read_name}) and {own.d_out} ({own.write_name}). Make the coder with d_in={own.d_in}"
            + (f", d_out={own.d_out}" if own.d_in != own.d_out or not own.is_autoencoder else "")
        )
    for kind, widths, each in (
        ("read", coder.config.read_widths, own.reads),
        ("written", coder.config.write_widths, own.writes),
    ):
        if len(widths) > 1 and widths != tuple(width for _, width in each):
            raise ShapeError(f"the coder's sites {kind} are {widths} wide, the source's {[width for _, width in each]}")
    if own == layout:
        return Columns(layout, None)
    starts, place = {}, 0
    for name in layout.hook_names:
        starts[name] = slice(place, place + sites[name])
        place += sites[name]
    return Columns(own, tuple(starts[name] for name in own.hook_names))
