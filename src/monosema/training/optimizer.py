"""The update: fused Adam that a bad step cannot touch, and renormalisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monosema.coders import SparseCoder
from monosema.training.config import TrainingConfig


class CoderOptimizer:
    """Adam over a coder's parameters, fused where the device has it.

    A step whose gradients or loss are not finite changes nothing: the check stays on the device.
    """

    def __init__(self, coder: SparseCoder, config: TrainingConfig):
        self._coder, self._config = coder, config
        self._names = [name for name, _ in coder.named_parameters()]
        self._parameters = [parameter for _, parameter in coder.named_parameters()]
        fused = coder.device.type in ("cpu", "cuda", "mps") and coder.dtype.is_floating_point
        self.adam = torch.optim.Adam(
            self._parameters,
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=fused,
        )

    @torch.no_grad()
    def step_(self, gradients: Mapping[str, Tensor], loss: Tensor, lr: float) -> Tensor:
        """Update the parameters in place; returns a 0-d bool, False where the step was skipped."""
        decoder = self._coder.W_dec
        unit_norm = self._config.decoder == "unit_norm"
        for name, parameter in zip(self._names, self._parameters, strict=True):
            parameter.grad = gradients[name].to(parameter.dtype)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        ok = torch.isfinite(norm) & torch.isfinite(loss)
        if self._config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._config.grad_clip, norm)
        self.adam.param_groups[0]["lr"] = lr
        # fused Adam leaves everything alone where this is 1
        self.adam.found_inf = (~ok).float().reshape(())  # type: ignore[attr-defined]
        self.adam.step()
        if unit_norm:
            norms = decoder.norm(dim=1, keepdim=True).clamp(min=1e-8)
            decoder.div_(torch.where(ok, norms, torch.ones_like(norms)))  # a skipped step keeps every bit
        self._coder.activation.project_()
        for parameter in self._parameters:
            parameter.grad = None
        return ok

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name."""
        state = {}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            for key, value in self.adam.state.get(parameter, {}).items():
                state[f"{name}.{key}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in zip(self._names, self._parameters, strict=True):
            own = {key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in state}
            if own:
                self.adam.state[parameter] = {key: value.clone().to(parameter.device) for key, value in own.items()}
