"""A training state held still: copies in host memory that is used again, and the dictionary as it is saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monosema.coders import Scaling, TrainableDictionary
from monosema.training.start import can_fold_norms


class Snapshot:
    """Host copies of named tensors, pinned for those of a GPU; memory is made once for each name and shape."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors``, over those of before; they may change as soon as this returns."""
        held = {}
        for name, tensor in tensors.items():
            place = self.tensors.get(name)
            if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
                place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            held[name] = place.copy_(tensor, non_blocking=tensor.is_cuda)
        self.tensors = held
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()


@dataclass(frozen=True)
class Folding:
    """What makes a dictionary in training one of raw activations, scaling and decoder norms folded in."""

    inputs: Scaling
    """Of what it reads."""
    outputs: Scaling
    """Of what it writes."""
    unit_norm: bool
    """Whether its decoder rows are held at norm one."""

    @torch.no_grad()
    def __call__(self, coder: TrainableDictionary) -> TrainableDictionary:
        """A folded copy of ``coder``: what is saved."""
        coder = copy.deepcopy(coder)
        coder.requires_grad_(False)
        coder.is_trained = True
        for part in coder.parts:
            part.coder.activation.use_k_(None)
        if not self.outputs.is_uniform:
            coder.fold_selection_weights()
        if not (self.inputs.is_identity and self.outputs.is_identity):
            coder.fold_input_scaling(self.inputs, self.outputs)
        if can_fold_norms(coder, self.outputs.is_uniform and self.unit_norm):
            coder.fold_W_dec_norm()
        return coder


def on_host(coder: TrainableDictionary, tensors: Mapping[str, Tensor] | None = None) -> TrainableDictionary:
    """A dictionary like ``coder`` on the CPU that has ``tensors``, named as in its ``state_dict``, for its own.

    They are not copied. By default, its own ones.
    """
    given = coder.state_dict() if tensors is None else tensors
    held: dict[int, Tensor] = {}
    for name, value in (*coder.named_parameters(), *coder.named_buffers()):
        tensor = given.get(name, value).detach().cpu()
        held[id(value)] = nn.Parameter(tensor, requires_grad=False) if isinstance(value, nn.Parameter) else tensor
    return copy.deepcopy(coder, held)  # takes what is in ``held`` for what has that id
