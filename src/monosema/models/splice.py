"""The splice: what puts something in a site's place, and the protocol of what reads sites and writes sites.

With z the latents of what a site read and z′ those after an edit, the site becomes ``decode(z′)``; with the error term

    ``h.detach() + (decode(z′) - decode(z).detach())``

in this order, where z and z′ are decoded in one way: what was not edited differs from h in no bit, and an edit is not
cancelled by an error that was measured after it. The gradient is that of ``decode(z′)``, with the error a constant.
Nothing here knows what a dictionary is; ``splicing`` adapts dictionaries to the protocol.
Shape letters: B sequences, T tokens; n counts the rows at which a splice acts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, final, runtime_checkable

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, UserError
from monosema.models.hooks import ContextEdit, EditFunction, ValueEdit
from monosema.models.language_model import SiteName
from monosema.models.passes import PassContext

Z = TypeVar("Z")
"""Latents of one group, in whatever form its ``decode`` takes: dense rows or sparse ones."""

Where = Tensor | tuple[Tensor, ...]
"""Which rows of ``[B, T, width]``: a mask ``[B, T]``, or indices of both dimensions."""

RowChoice = Callable[[PassContext], Tensor]
"""Of a pass, the rows ``[B, T]`` at which a splice acts; all others keep what the model computes."""


@runtime_checkable
class Spliceable(Protocol[Z]):
    """Groups of latents, each of which reads sites and adds to sites written.

    An SAE or transcoder is one group that reads one site and writes one; a cross-layer transcoder has a group for each
    layer, which writes to all later ones. A group that reads several sites gets them side by side, once the last is
    there.
    """

    @property
    def reads(self) -> Sequence[tuple[str, ...]]:
        """By group, the sites that it reads."""

    @property
    def writes(self) -> Sequence[str]:
        """The sites written."""

    def sources(self, written: int) -> Sequence[int]:
        """The groups that add to the site ``writes[written]``."""

    def bias(self, written: int, n: int) -> Tensor:
        """``[n, width]``: what the site ``writes[written]`` becomes beside what the groups add."""

    def encode(self, group: int, x: Tensor) -> Z:
        """A group's latents of the rows read ``x [n, width]``, which may be on another device and of another dtype."""

    def decode(self, group: int, latents: Z, x: Tensor) -> Sequence[tuple[int, Tensor]]:
        """What they add: the number of a site written and ``[n, width]``, for each that the group writes."""

    def touched(self, before: Z, after: Z) -> Tensor:
        """``[n]`` bool: rows in which latents differ."""


@dataclass(frozen=True)
class Reading:
    """Rows that one group has read, as an edit of its latents sees them."""

    owner: int
    """Which of the things spliced."""
    group: int
    """Which of its groups."""
    x: Tensor
    """``[n, width]``: the rows read."""
    context: PassContext
    """The pass."""
    rows_BT: Tensor
    """``[B, T]`` bool: where the n rows lie."""


LatentEdit = Callable[[Z, Reading], Z]
"""Takes a group's latents and returns z′: another object, or the same where nothing changes. Never works in place."""

OnWrite = Callable[[int, str, Tensor], None]
"""Told of each site written: by which owner, its name, and ``[n, width]`` what the groups wrote there."""


def change(decoded: Tensor, before: Tensor) -> Tensor:
    """``decode(z′) - decode(z).detach()``."""
    return decoded - before.detach()


def with_error(h: Tensor, changed: Tensor) -> Tensor:
    """``h.detach() + change``, in the dtype of h and on its device."""
    return h.detach() + changed.to(h)


def without_error(changed: Tensor, error: Tensor) -> Tensor:
    """``change - error``: added to h, it makes ``decode(z′)`` of it, for an error ``h - decode(z)``."""
    return changed - error


def placed(value: Tensor, where: Where, rows: Tensor) -> Tensor:
    """``value [B, T, width]`` with ``rows [n, width]`` in the place of some of its own, in its dtype."""
    new = value.clone()
    new[_on(where, value.device)] = rows.to(device=value.device, dtype=value.dtype)
    return new


def instead(value: Tensor) -> ValueEdit:
    """The edit that makes a site ``value``, whatever it is."""
    return lambda current: value.to(device=current.device, dtype=current.dtype)


def moved(where: Where, changed: Tensor) -> ValueEdit:
    """The edit that moves the rows ``where`` by ``changed [n, width]``: ``with_error``, and the others stay."""

    def edit(value: Tensor) -> Tensor:
        return placed(value, where, with_error(value[_on(where, value.device)], changed))

    return edit


def every_row(context: PassContext) -> Tensor:
    """All rows, as a ``RowChoice``."""
    return torch.ones_like(context.is_padding)


def text_rows(context: PassContext) -> Tensor:
    """All rows but padding and special tokens."""
    return ~(context.is_padding | context.is_special)


@dataclass
class _State(Generic[Z]):
    """What one pass has read and what it is to write."""

    number: int
    """The pass."""
    rows_BT: Tensor
    """``[B, T]`` bool: where the splice acts."""
    n: int
    """How many rows that is."""
    inputs: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    """By owner and group, the rows of each site read so far."""
    written: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """By owner and site written, the bias and what groups have added: ``decode(z′)`` in the end."""
    before: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """The same of the latents before edits: ``decode(z)``."""


@final
class Splice(Generic[Z]):
    """Things spliced into every forward pass of a model inside ``model.edits(splice.edits())``.

    Where a site is read, its latents are encoded, edited and decoded; where a site is written, it becomes the sum of
    what was decoded for it, with the error term or without. At a site that is both, the order is: what reads it to
    write it, then its replacement, then all others that read it, which so read the replaced value.
    """

    def __init__(
        self,
        things: Sequence[Spliceable[Z]],
        *,
        error_term: bool,
        rows: RowChoice = text_rows,
        edit: LatentEdit[Z] | None = None,
        on_write: OnWrite | None = None,
    ) -> None:
        """``ConfigError`` where two write one site."""
        self._things, self._error_term, self._rows = tuple(things), error_term, rows
        self._edit, self._on_write = edit, on_write
        self._state: _State[Z] | None = None
        owners: dict[str, int] = {}
        for owner, thing in enumerate(self._things):
            for name in thing.writes:
                if name in owners:
                    raise ConfigError(f"two dictionaries write {name!r}; give one for each site")
                owners[name] = owner

    def edits(self) -> dict[SiteName, EditFunction]:
        """By site, what happens there."""
        first: dict[str, list[ContextEdit]] = {}
        writes: dict[str, list[ContextEdit]] = {}
        last: dict[str, list[ContextEdit]] = {}
        for owner, thing in enumerate(self._things):
            for group, names in enumerate(thing.reads):
                written = {thing.writes[number] for number in _written_by(thing, group)}
                for name in names:
                    (first if name in written else last).setdefault(name, []).append(self._reader(owner, group, name))
            for number, name in enumerate(thing.writes):
                writes.setdefault(name, []).append(self._writer(owner, number))
        return {
            name: _in_turn([*first.get(name, ()), *writes.get(name, ()), *last.get(name, ())])
            for name in dict.fromkeys([*first, *writes, *last])
        }

    def _reader(self, owner: int, group: int, name: str) -> ContextEdit:
        def read(value: Tensor, context: PassContext) -> Tensor:
            state = self._of_pass(context)
            thing, found = self._things[owner], state.inputs.setdefault((owner, group), {})
            if name in found:
                raise UserError(f"{name!r} runs several times in one forward pass, so no coder can take its place")
            found[name] = value[state.rows_BT.to(value.device)]
            if len(found) == len(thing.reads[group]):
                inputs = [found[each] for each in thing.reads[group]]
                x = inputs[0] if len(inputs) == 1 else torch.cat([each.to(inputs[0].device) for each in inputs], dim=1)
                self._add(state, Reading(owner, group, x, context, state.rows_BT))
            return value

        return read

    def _writer(self, owner: int, number: int) -> ContextEdit:
        thing = self._things[owner]
        name = thing.writes[number]

        def write(value: Tensor, context: PassContext) -> Tensor:
            state = self._of_pass(context)
            for group in thing.sources(number):
                found = state.inputs.get((owner, group), {})
                missing = [each for each in thing.reads[group] if each not in found]
                if missing:
                    raise UserError(
                        f"the model computes {name!r} before {missing[0]!r}, from which it is to be written; a coder "
                        "must read before it writes"
                    )
            rows_BT = state.rows_BT.to(value.device)
            decoded = self._total(state.written, state, owner, number)
            if self._on_write is not None:
                self._on_write(owner, name, decoded)
            if self._error_term:
                before = self._total(state.before, state, owner, number)
                decoded = with_error(value[rows_BT], change(decoded, before))
            return placed(value, rows_BT, decoded)

        return write

    def _add(self, state: _State[Z], reading: Reading) -> None:
        """Encode what a group has read, and add what it writes to the sums."""
        owner, group, x = reading.owner, reading.group, reading.x
        thing = self._things[owner]
        before = thing.encode(group, x)
        after = before if self._edit is None else self._edit(before, reading)
        decoded = thing.decode(group, after, x)
        for number, each in decoded:
            state.written[owner, number] = self._total(state.written, state, owner, number) + each
        if not self._error_term:
            return
        if after is not before:
            # Rows that no edit touched are decoded once, so that their difference is zero on every device.
            touched = thing.touched(before, after).unsqueeze(1)
            unedited = dict(thing.decode(group, before, x))
            decoded = [(number, torch.where(touched, unedited[number], each)) for number, each in decoded]
        for number, each in decoded:
            state.before[owner, number] = self._total(state.before, state, owner, number) + each.detach()

    def _total(self, sums: Mapping[tuple[int, int], Tensor], state: _State[Z], owner: int, number: int) -> Tensor:
        """``[n, width]``: what was summed up for a site so far, its bias at least."""
        found = sums.get((owner, number))
        return self._things[owner].bias(number, state.n) if found is None else found

    def _of_pass(self, context: PassContext) -> _State[Z]:
        if self._state is None or self._state.number != context.number:
            rows_BT = self._rows(context)
            self._state = _State(context.number, rows_BT, int(rows_BT.sum()))
        return self._state


def _written_by(thing: Spliceable[Any], group: int) -> list[int]:
    return [number for number in range(len(thing.writes)) if group in thing.sources(number)]


def _on(where: Where, device: torch.device) -> Where:
    if isinstance(where, tuple):
        return tuple(each.to(device) for each in where)
    return where.to(device)


def _in_turn(functions: Sequence[ContextEdit]) -> ContextEdit:
    def apply(value: Tensor, context: PassContext) -> Tensor:
        for function in functions:
            value = function(value, context)
        return value

    return apply
