"""One call of a module, seen from a hook: find its activation among the arguments or in the output, and replace it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monosema.core.errors import UserError

Side = Literal["in", "out"]


class ModuleCall:
    """A module's call as seen before it runs (``side="in"``) or after (``side="out"``).

    ``activation`` is the first floating-point tensor among the positional arguments, else the keyword argument
    ``hidden_states``, else the first floating-point keyword argument; on the output side, the output or the first
    tensor of an output tuple. Assigning ``activation`` replaces it; ``replaced`` tells whether that happened.
    """

    def __init__(
        self, module: nn.Module, side: Side, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any = None
    ) -> None:
        self.module = module
        self.side = side
        self.args = args
        self.kwargs = dict(kwargs)
        self.output = output
        self.replaced = False
        self._input_key = self._find_input_key()

    def _find_input_key(self) -> int | str | None:
        for index, argument in enumerate(self.args):
            if _is_activation(argument):
                return index
        if _is_activation(self.kwargs.get("hidden_states")):
            return "hidden_states"
        return next((name for name, argument in self.kwargs.items() if _is_activation(argument)), None)

    @property
    def input(self) -> Tensor:
        """The activation the module was called with."""
        found = self.find_input()
        if found is None:
            raise UserError(f"{type(self.module).__name__} was called with no floating-point tensor to read")
        return found

    @property
    def activation(self) -> Tensor:
        """The input's activation on the ``in`` side, the output's on the ``out`` side."""
        if self.side == "in":
            return self.input
        found = self.find_output()
        if found is None:
            raise UserError(f"the output of {type(self.module).__name__} does not begin with a floating-point tensor")
        return found

    @activation.setter
    def activation(self, value: Tensor) -> None:
        self.replaced = True
        if self.side == "out":
            if isinstance(self.output, (tuple, list)):
                rest = (value, *self.output[1:])
                self.output = list(rest) if isinstance(self.output, list) else rest
            else:
                self.output = value
        elif isinstance(self._input_key, int):
            self.args = (*self.args[: self._input_key], value, *self.args[self._input_key + 1 :])
        else:
            assert self._input_key is not None, "a value was read before it is replaced"
            self.kwargs[self._input_key] = value

    def find_input(self) -> Tensor | None:
        """The activation among the arguments, or ``None`` (an embedding's tokens are not one)."""
        if self._input_key is None:
            return None
        return self.args[self._input_key] if isinstance(self._input_key, int) else self.kwargs[self._input_key]

    def find_output(self) -> Tensor | None:
        """The activation the module returned, or ``None``."""
        first = self.output[0] if isinstance(self.output, (tuple, list)) and self.output else self.output
        return first if _is_activation(first) else None


def _is_activation(value: Any) -> bool:
    return isinstance(value, Tensor) and torch.is_floating_point(value)
