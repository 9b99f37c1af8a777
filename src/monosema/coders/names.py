"""The field's names for what a coder stores in another way: ``W_enc``, and the parameters of its activation.

``W_enc [d_in, d_sae]`` is a view of the stored ``W_enc_rows [d_sae, d_in]``, made at each access. A plain view would
drop what is assigned to its ``.data``, and ``load_state_dict(strict=False)`` would skip its name.
"""

from __future__ import annotations

import copy
import math
from typing import Any, final

import torch
from torch import Tensor, nn

from monosema.coders.activations.base import Activation
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.core.errors import ShapeError

OF_ACTIVATION = ("threshold", "r_mag", "b_gate", "b_mag")
"""Names that the field has beside ``W_enc`` and that belong to ``coder.activation`` here."""


@final
class WeightView(Tensor):
    """A view of a parameter. What is assigned to its ``.data`` is copied into the parameter.

    What is computed from it, its copy and what is pickled of it are plain tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        """The values without their history, a view as well."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        write_(self, value, "W_enc")

    def detach(self) -> Tensor:
        return super().detach().as_subclass(WeightView)  # nn.Parameter asks for the same class

    def __deepcopy__(self, memo: dict[Any, Any]) -> Tensor:
        return copy.deepcopy(self.as_subclass(Tensor), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def view_of(rows: Tensor) -> Tensor:
    """``rows.T`` as a ``WeightView``; autograd passes through. Compiled code takes the plain view."""
    return rows.T if torch.compiler.is_compiling() else rows.T.as_subclass(WeightView)


@torch.no_grad()
def write_(place: Tensor, value: Tensor, name: str) -> None:
    """Copy ``value`` into ``place``; ``ShapeError`` where its shape is another, as no value is repeated."""
    if value.shape != place.shape:
        raise ShapeError(f"{name}: expected a tensor {list(place.shape)}, got {list(value.shape)}")
    place.copy_(value)


def translate_(state: dict[str, Any], prefix: str, rows: Tensor, activation: Activation) -> list[str]:
    """Replace the field's names below ``prefix`` by those under which a coder stores them, in place.

    ``W_enc``, and the activation's parameters without ``activation.`` before them. The ``threshold`` of TopK, AbsTopK
    and BatchTopK is one number, or the same for each latent. Returns what is wrong with the values.
    """
    errors = []
    W_enc = state.pop(prefix + "W_enc", None)
    if W_enc is not None:
        if W_enc.shape == rows.T.shape:
            state[prefix + "W_enc_rows"] = W_enc.T.contiguous()
        else:
            state[prefix + "W_enc_rows"] = rows
            errors.append(f"W_enc: expected [d_in, d_sae] = {list(rows.T.shape)}, got {list(W_enc.shape)}")
    for name, _ in activation.named_parameters():
        if prefix + name in state:
            state[f"{prefix}activation.{name}"] = state.pop(prefix + name)
    if isinstance(activation, FixedCountActivation) and prefix + "threshold" in state:
        values = torch.as_tensor(state.pop(prefix + "threshold")).double().unique().tolist()
        if len(values) == 1 and math.isfinite(values[0]) and values[0] >= 0:
            state[prefix + "activation.running.total"] = torch.tensor(values[0], dtype=torch.float64)
            state[prefix + "activation.running.weight"] = torch.tensor(1.0, dtype=torch.float64)
        else:
            errors.append(
                f"threshold: expected one finite number that is not negative for all latents, got {values[:3]}; a "
                "threshold for each latent needs activation=JumpReLU()"
            )
    return errors


def unknown_names(state: dict[str, Any], prefix: str, module: nn.Module) -> list[str]:
    """An error for names below ``prefix`` that ``module`` does not have: values for them would be lost."""
    known = set(module.state_dict())
    unknown = sorted(name for key in state if key.startswith(prefix) and (name := key[len(prefix) :]) not in known)
    if not unknown:
        return []
    return [f"unknown names {', '.join(unknown)}; expected W_enc, {', '.join(sorted(known - {'W_enc_rows'}))}"]
