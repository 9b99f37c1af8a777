"""Running taps during forward passes: one PyTorch hook per module side, and an order that does not depend on who asked.

Every active tap, from any number of nested ``edits`` and ``capture`` calls, hangs on a shared ``Interceptor``. On one
side of one module the taps run by rank, that is in the order of the computation; on one tap, edits run first (outer
context first), each on what the one before returned, then observers see the result. So an edit sees every value as
already edited upstream, and a capture inside an ``edits`` context sees edited values, whichever came first. One head
shares the tap of the whole site, so that this order holds between heads and the whole as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from monosema.core.errors import ShapeError, UserError
from monosema.models.calls import ModuleCall, Side
from monosema.models.passes import PassContext, PassTracker
from monosema.models.taps import Tap

ValueEdit = Callable[[Tensor], Tensor]
"""Takes a site's value [B, T, width] and returns its replacement, of the same shape."""

ContextEdit = Callable[[Tensor, PassContext], Tensor]
"""The same, and takes the context of the pass behind the value."""

EditFunction = ValueEdit | ContextEdit
"""Either; ``passes.takes_context`` tells them apart by their signature."""


class ForwardStopped(BaseException):
    """Ends a forward pass once everything asked for was captured.

    A ``BaseException`` so that model code with an ``except Exception`` cannot swallow it; it never leaves this package.
    """


@dataclass(eq=False)
class Action:
    """Something to do with a tap's value: edit it, or observe it."""

    tap: Tap
    """Where."""
    name: str
    """The site's name, for error messages."""
    columns: slice | None = None
    """The columns of the tap's value that the action sees; all of them by default, fewer for one head."""
    edit: ValueEdit | None = None
    """Returns the new value, when the action edits."""
    edit_in_context: ContextEdit | None = None
    """The same, where it takes the context of the pass."""
    observe: Callable[[Tensor], None] | None = None
    """Receives the value after all edits, when the action observes."""


class _Reservation:
    """One thread's sole use of a model."""

    def __init__(self) -> None:
        self.owner = threading.current_thread()
        self.ended = threading.Event()

    def wait(self) -> None:
        """Return when it has ended; in its own thread at once."""
        if threading.current_thread() is not self.owner:
            self.ended.wait()


class Interceptor:
    """The active actions of one model.

    Actions that edit in a context need ``passes``, which follows the model's passes while such actions are active.
    """

    def __init__(self, passes: PassTracker | None = None) -> None:
        self._passes = passes
        self._actions: dict[tuple[nn.Module, Side], list[Action]] = {}
        self._handles: dict[tuple[nn.Module, Side], RemovableHandle] = {}
        self._memory: dict[Tap, Tensor] = {}
        self._paused = False
        self._reservations: list[_Reservation] = []

    @property
    def modules(self) -> frozenset[nn.Module]:
        """The modules that have a hook now."""
        return frozenset(module for module, _ in self._actions)

    @contextmanager
    def active(self, actions: Sequence[Action]) -> Iterator[None]:
        """Run ``actions`` in every forward pass inside the context; hooks are removed however it ends."""
        self._wait()
        everything = [*self._remember_actions(actions), *actions]
        with ExitStack() as stack:
            if any(action.edit_in_context is not None for action in actions):
                assert self._passes is not None, "these actions need the model's passes"
                stack.enter_context(self._passes.followed())
            try:
                for action in everything:
                    self._add(action)
                yield
            finally:
                for action in everything:
                    self._remove(action)
                    self._memory.pop(action.tap, None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave every action idle, for measurements through an interceptor of their own that edits must not touch."""
        self._wait()
        was_paused = self._paused
        try:
            self._pause(True)
            yield
        finally:
            self._pause(was_paused)

    def _pause(self, is_paused: bool) -> None:
        self._paused = is_paused
        if self._passes is not None:
            self._passes.is_paused = is_paused

    @contextmanager
    def reserved(self, model: nn.Module) -> Iterator[None]:
        """Only this thread runs ``model`` or makes actions active; others that are about to wait for the end."""
        self._wait()
        reservation = _Reservation()
        handle = model.register_forward_pre_hook(lambda *_: reservation.wait())
        self._reservations.append(reservation)
        try:
            yield
        finally:
            handle.remove()
            self._reservations.remove(reservation)
            reservation.ended.set()

    def _wait(self) -> None:
        for reservation in tuple(self._reservations):
            reservation.wait()

    def _remember_actions(self, actions: Sequence[Action]) -> list[Action]:
        def remember(tap: Tap) -> Action:
            def observe(value: Tensor) -> None:
                self._memory[tap] = value

            return Action(tap=tap, name="remembered value", observe=observe)

        return [remember(needed) for tap in {action.tap: None for action in actions} for needed in tap.needs]

    def _add(self, action: Action) -> None:
        key = (action.tap.module, action.tap.side)
        if key not in self._actions:
            self._actions[key] = []
            self._handles[key] = self._register(*key)
        self._actions[key].append(action)
        self._actions[key].sort(key=lambda each: each.tap.rank)

    def _remove(self, action: Action) -> None:
        key = (action.tap.module, action.tap.side)
        if action not in self._actions.get(key, ()):
            return
        self._actions[key].remove(action)
        if not self._actions[key]:
            self._handles.pop(key).remove()
            del self._actions[key]

    def _register(self, module: nn.Module, side: Side) -> RemovableHandle:
        if side == "in":

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                call = ModuleCall(module, "in", args, kwargs)
                self._run(call)
                return (call.args, call.kwargs) if call.replaced else None

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            call = ModuleCall(module, "out", args, kwargs, output)
            self._run(call)
            return call.output if call.replaced else None

        return module.register_forward_hook(after, with_kwargs=True)

    def _run(self, call: ModuleCall) -> None:
        if self._paused:
            return
        by_tap: dict[Tap, list[Action]] = {}
        for action in self._actions[call.module, call.side]:
            by_tap.setdefault(action.tap, []).append(action)
        for tap, actions in by_tap.items():
            old = tap.read(call, [self._memory[needed] for needed in tap.needs])
            new = old
            for action in actions:
                if (edit := self._edit_of(action, new.device)) is not None:
                    new = _edited(new, edit, action.columns, action.name)
            if new is not old:
                tap.write(call, old, new)
            for action in actions:
                if action.observe is not None:
                    action.observe(new if action.columns is None else new[..., action.columns])

    def _edit_of(self, action: Action, device: torch.device) -> ValueEdit | None:
        """The function of the value alone that the action edits by; None where it only observes."""
        in_context = action.edit_in_context
        if in_context is None:
            return action.edit
        assert self._passes is not None, "checked when it became active"
        context = self._passes.context(action.name).to(device)
        return lambda value: in_context(value, context)


def _edited(value: Tensor, edit: ValueEdit, columns: slice | None, name: str) -> Tensor:
    """``value`` after ``edit`` of some columns."""
    seen = value if columns is None else value[..., columns]
    # The edit gets a copy: one that works in place must not change what the delta is taken from.
    new = _checked(edit(seen.clone()), seen, name)
    if columns is None:
        return new
    return torch.cat([value[..., : columns.start], new, value[..., columns.stop :]], dim=-1)


def _checked(new: Any, old: Tensor, name: str) -> Tensor:
    if not isinstance(new, Tensor):
        raise UserError(f"the edit of {name!r} returned {type(new).__name__}; expected a tensor")
    if new.shape != old.shape:
        raise ShapeError(
            f"the edit of {name!r} returned shape {list(new.shape)}; expected the shape it was given, {list(old.shape)}"
        )
    return new.to(dtype=old.dtype, device=old.device)
