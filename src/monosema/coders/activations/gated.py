"""Gated: one product decides whether a latent is active and how much, with separate biases and scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection, where_active
from monosema.coders.activations.configs import Gated
from monosema.coders.activations.family import SavedRule
from monosema.coders.activations.windows import kernel_density, near_entries
from monosema.kernels import Latents, entries_above
from monosema.kernels.latents import positions


@final
class GatedActivation(Activation):
    """``f = 1[π > 0] · ReLU(m)`` with ``π = pre + b_gate``, ``m = exp(r_mag) · pre + b_mag``.

    The indicator passes no gradient; the gate learns from ``ReLU(π)`` through the objective's own terms (sparsity and
    the auxiliary reconstruction with a frozen decoder), which arrive as ``ChannelGradients.gate``. A loss on the number
    of open gates reaches π through ``∂1[π > 0]/∂π ≈ K(π/ε)/ε``.
    Source: Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2.
    """

    has_encoder_bias = False

    def __init__(self, config: Gated, d_sae: int):
        super().__init__()
        self.b_gate = nn.Parameter(torch.zeros(d_sae))
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        opened = entries_above(pre_BF, -self.b_gate)
        latents, active = self._magnitudes(opened)
        gate = opened.with_values(opened.values + self.b_gate[opened.indices])
        near = None if window is None else near_entries(pre_BF + self.b_gate, window)
        near_activations = None if near is None else near.values.clamp(min=0)
        return Selection(latents, near, near_activations, gate=gate, active_in_gate=active)

    def above(self, selection: Selection) -> Latents | None:
        return selection.gate

    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        return self._magnitudes(entries_above(pre_BF, -self.b_gate))[0]

    def _magnitudes(self, opened: Latents) -> tuple[Latents, Tensor]:
        """The activations of entries whose gate is open, given their pre-activations: those with positive magnitude,
        and the place of each among ``opened``."""
        magnitude = opened.values * self.r_mag.exp()[opened.indices] + self.b_mag[opened.indices]
        active = positions(magnitude > 0)
        return opened.at(active, magnitude), active

    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        magnitude = pre_BF * self.r_mag.exp() + self.b_mag
        return where_active((pre_BF + self.b_gate > 0) & (magnitude > 0), magnitude)

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        assert selection.gate is not None and gradients.gate is not None and selection.active_in_gate is not None
        active, opened = selection.latents.indices.long(), selection.gate.indices.long()
        scaled = gradients.latents * self.r_mag.exp()[active]
        # exp(r_mag)·pre is what the activation holds beyond its bias
        r_mag = gradients.latents * (selection.latents.values - self.b_mag[active])
        zeros = torch.zeros_like(self.b_mag)
        b_gate = zeros.index_add(0, opened, gradients.gate)
        pre = [selection.gate.with_values(gradients.gate.index_add(0, selection.active_in_gate, scaled))]
        if gradients.near_step is not None:
            assert selection.near is not None and gradients.window is not None
            step = gradients.near_step * kernel_density(selection.near.values, gradients.window)
            b_gate.index_add_(0, selection.near.indices.long(), step)
            pre.append(selection.near.with_values(step))
        own = {"b_gate": b_gate, "b_mag": zeros.index_add(0, active, gradients.latents)}
        return ActivationGradients(tuple(pre), {**own, "r_mag": zeros.index_add(0, active, r_mag)})

    def scale_latents_(self, factors_F: Tensor) -> None:
        self.b_gate.mul_(factors_F)
        self.b_mag.mul_(factors_F)

    @torch.no_grad()
    def shift_latents_(self, offsets_F: Tensor) -> Tensor:
        self.b_gate.add_(offsets_F)
        self.b_mag.add_(offsets_F * self.r_mag.exp())
        return torch.zeros_like(offsets_F)

    @torch.no_grad()
    def start_above_(self, threshold: float) -> float:
        self.b_gate.fill_(-threshold)
        return 0.0

    def saved_rule(self, dtype: torch.dtype) -> SavedRule:
        return SavedRule(name="gated", tensors={name: value.detach() for name, value in self.named_parameters()})

    def thresholds(self) -> Tensor:
        return -self.b_gate.detach()

    def threshold_gradients(self, gradient_F: Tensor) -> Mapping[str, Tensor]:
        return {"b_gate": -gradient_F}

    @torch.no_grad()
    def reset_latents_(self, dead_F: Tensor) -> None:
        for parameter in (self.b_gate, self.r_mag, self.b_mag):
            parameter[dead_F] = 0
