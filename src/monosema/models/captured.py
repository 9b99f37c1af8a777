"""The values of sites, filled in while a forward pass runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from monosema.core.errors import ShapeError, UserError
from monosema.models.hooks import ForwardStopped
from monosema.models.shapes import wrong_shape
from monosema.models.sites import Site


@final
class CapturedValues:
    """The values of sites, as a forward pass on ``tokens_BT`` gives them: the first of each.

    The last of all ends the pass, where ``stops``.
    """

    tokens_BT: Tensor

    def __init__(self, wanted: Mapping[str, Site], *, stops: bool) -> None:
        self.wanted, self._stops = wanted, stops
        self._found: dict[str, Tensor] = {}

    def keep_copy(self, name: str, value: Tensor) -> None:
        """Keep a copy without gradients. ``ShapeError`` for a shape that is not the site's."""
        # A copy, because some blocks add to their branches' outputs in place afterwards.
        self._keep(name, value, lambda: value.detach().clone())

    def keep_branch(self, name: str, value: Tensor) -> None:
        """Keep a copy with its gradients; nothing that the pass computes depends on it."""
        self._keep(name, value, value.clone)

    def keep_on_path(self, name: str, value: Tensor) -> Tensor:
        """Keep a value and give its copy to the pass, which so depends on what is kept; an edit.

        Where gradients are recorded, a value that depends on nothing that requires them requires them itself.
        """
        if name in self._found:
            return value
        if torch.is_grad_enabled() and not value.requires_grad:
            value.requires_grad_()
        self._keep(name, value, lambda: value)
        return value.clone()

    def complete(self) -> dict[str, Tensor]:
        """All of them, in the order wanted; ``UserError`` where a module did not run."""
        missing = [name for name in self.wanted if name not in self._found]
        if missing:
            raise UserError(f"the forward pass did not run the modules of {', '.join(map(repr, missing))}")
        return {name: self._found[name] for name in self.wanted}

    def _keep(self, name: str, value: Tensor, kept: Callable[[], Tensor]) -> None:
        n_batch, n_tokens = self.tokens_BT.shape
        expected = self.wanted[name].value_shape((n_batch, n_tokens))
        if value.shape != expected:
            raise ShapeError(f"cannot capture {name!r}: {wrong_shape(value.shape, expected)}")
        if name not in self._found:
            self._found[name] = kept()
        if self._stops and len(self._found) == len(self.wanted):
            raise ForwardStopped
