"""The update: fused Adam that a bad step cannot touch, or any optimiser of PyTorch's kind; and renormalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError
from monosema.training.config import TrainingConfig
from monosema.training.schedules import automatic_beta2

OptimizerFactory = Callable[[list[Tensor]], Optimizer]
"""Makes the optimiser of a dictionary's parameters, such as ``torch.optim.NAdam``; its learning rate is the run's."""


_PLAIN = {int: torch.int64, float: torch.float64}


class CoderOptimizer:
    """Adam over a dictionary's parameters, fused where the device has it; or whatever ``make`` makes of them.

    A step whose gradients or loss are not finite changes nothing. For Adam the check stays on the device; for others
    the host waits for it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        config: TrainingConfig,
        n_steps: int,
        device: torch.device,
        make: OptimizerFactory | None = None,
    ):
        self._config = config
        self._parameters = dict(parameters)
        self._skips_itself = make is None
        trained = list(self._parameters.values())
        if make is not None:
            self.optimizer = make(trained)
            held = [id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]]
            if sorted(held) != sorted(map(id, trained)):
                raise ConfigError("optimizer must hold every parameter that it is given, once, and no other")
            return
        beta2 = automatic_beta2(n_steps) if config.beta2 == "auto" else config.beta2
        fused = device.type in ("cpu", "cuda", "mps")
        self.optimizer = Adam(trained, lr=0.0, betas=(config.beta1, beta2), eps=config.epsilon, fused=fused)

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
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._skips_itself:
            # fused Adam leaves everything alone where this is 1
            self.optimizer.found_inf = (~ok).float().reshape(())  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(ok):
            with torch.enable_grad():
                self.optimizer.step()
        for parameter in trained:
            parameter.grad = None
        return ok

    @torch.no_grad()
    def reset_moments_(self, name: str, rows: Tensor) -> None:
        """Zero in place what the optimiser remembers of ``rows`` of the parameter ``name``."""
        parameter = self._parameters[name]
        for value in self.optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[rows] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """What the optimiser remembers, by parameter name; plain numbers as tensors that nothing else is like."""
        return {
            f"{name}.{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=_PLAIN[type(value)])
            for name, parameter in self._parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, (Tensor, *_PLAIN))
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            keys = {key.removeprefix(f"{name}."): key for key in state if key.startswith(f"{name}.")}
            own = {short: state[key] for short, key in keys.items() if "." not in short}
            if own:
                self.optimizer.state[parameter] = {
                    key: value.item()
                    if value.ndim == 0 and value.dtype in _PLAIN.values()
                    else value.clone().to(parameter.device)
                    for key, value in own.items()
                }


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
