"""The update: fused Adam that a bad step cannot touch, and renormalisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.training.config import TrainingConfig
from monosema.training.schedules import automatic_beta2


class CoderOptimizer:
    """Adam over a dictionary's parameters, fused where the device has it.

    A step whose gradients or loss are not finite changes nothing: the check stays on the device.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: TrainingConfig, n_steps: int, device: torch.device):
        self._config = config
        beta2 = automatic_beta2(n_steps) if config.beta2 == "auto" else config.beta2
        self._parameters = dict(parameters)
        self.adam = torch.optim.Adam(
            list(self._parameters.values()),
            lr=0.0,
            betas=(config.beta1, beta2),
            eps=config.epsilon,
            fused=device.type in ("cpu", "cuda", "mps"),
        )

    @torch.no_grad()
    def step_(self, gradients: Mapping[str, Tensor], loss: Tensor, lr: float) -> Tensor:
        """Update the parameters in place; returns a 0-d bool, False where the step was skipped."""
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name].to(parameter.dtype)
        trained = list(self._parameters.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        ok = torch.isfinite(norm) & torch.isfinite(loss)
        if self._config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, self._config.grad_clip, norm)
        self.adam.param_groups[0]["lr"] = lr
        # fused Adam leaves everything alone where this is 1
        self.adam.found_inf = (~ok).float().reshape(())  # type: ignore[attr-defined]
        self.adam.step()
        for parameter in trained:
            parameter.grad = None
        return ok

    @torch.no_grad()
    def reset_moments_(self, name: str, rows: Tensor) -> None:
        """Zero in place the moments of ``rows`` of the parameter ``name``."""
        for key, value in self.adam.state.get(self._parameters[name], {}).items():
            if key != "step":
                value[rows] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name."""
        state = {}
        for name, parameter in self._parameters.items():
            for key, value in self.adam.state.get(parameter, {}).items():
                state[f"{name}.{key}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            own = {key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in state}
            if own:
                self.adam.state[parameter] = {key: value.clone().to(parameter.device) for key, value in own.items()}


@torch.no_grad()
def renormalise_(dictionary: Dictionary, ok: Tensor) -> None:
    """Give every decoder row norm one again in place; a skipped step keeps every bit."""
    for part in dictionary.parts:
        decoder = part.coder.W_dec
        norms = decoder.norm(dim=1, keepdim=True).clamp(min=1e-8)
        decoder.div_(torch.where(ok, norms, torch.ones_like(norms)))


@torch.no_grad()
def project_(dictionary: Dictionary) -> None:
    """Put parameters of activations back into their allowed range in place."""
    for part in dictionary.parts:
        part.coder.activation.project_()
