"""The update: fused Adam that a bad step cannot touch, or any optimiser of PyTorch's kind; and renormalisation."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from monosema.coders import TrainableDictionary
from monosema.core.errors import ConfigError
from monosema.kernels.dispatch import runs_triton
from monosema.kernels.precision import Shadows
from monosema.training.config import TrainingConfig
from monosema.training.schedules import automatic_beta2

OptimizerFactory = Callable[[list[Tensor]], Optimizer]
"""Makes the optimiser of a dictionary's parameters, such as ``torch.optim.NAdam``; its learning rate is the run's."""


_PLAIN = {int: torch.int64, float: torch.float64}


class CoderOptimizer:
    """Adam over a dictionary's parameters, fused where the device has it; or whatever ``make`` makes of them.

    A step whose gradients or loss are not finite changes nothing. For Adam the check stays on the device; for others
    the host waits for it. On CUDA the matrices are updated by a Triton program, which can do what surrounds an update
    in the same pass: see ``keeps_unit_norm``.

    Args:
        shadows: copies of the parameters in low precision, written together with them.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        config: TrainingConfig,
        n_steps: int,
        device: torch.device,
        make: OptimizerFactory | None = None,
        shadows: Shadows | None = None,
    ):
        self._config = config
        self._parameters = dict(parameters)
        self._shadows = Shadows() if shadows is None else shadows
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

    @property
    def keeps_unit_norm(self) -> bool:
        """Whether ``step_(directions=…)`` projects gradients and renormalises rows itself."""
        # a clipped gradient is measured after the projection, so that one cannot wait for the update
        return self._config.grad_clip is None and self._programs_for(next(iter(self._parameters.values())))

    @torch.no_grad()
    def step_(
        self, gradients: Mapping[str, Tensor], loss: Tensor, lr: float, directions: Collection[str] = ()
    ) -> Tensor:
        """Update the parameters in place; returns a 0-d bool, False where the step was skipped.

        The rows of the matrices named in ``directions`` have norm one and keep it, where ``keeps_unit_norm``.
        """
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
            for name, parameter in self._parameters.items():
                if parameter.ndim == 2 and self._programs_for(parameter):
                    self._update_rows_(parameter, lr, ok, is_direction=name in directions)
            # fused Adam leaves everything alone where this is 1
            self.optimizer.found_inf = (~ok).float().reshape(())  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(ok):
            with torch.enable_grad():
                self.optimizer.step()
        for parameter in trained:
            parameter.grad = None
        return ok

    def _programs_for(self, parameter: Tensor) -> bool:
        return self._skips_itself and runs_triton(parameter) and parameter.dtype == torch.float32

    def _update_rows_(self, parameter: Tensor, lr: float, ok: Tensor, *, is_direction: bool) -> None:
        programs = importlib.import_module("monosema.kernels.triton_adam")
        state, options = self.optimizer.state[parameter], self.optimizer.defaults
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += ok
        with torch.cuda.device_of(parameter):
            programs.update_rows_(
                parameter,
                parameter.grad,
                programs.Moments(state["exp_avg"], state["exp_avg_sq"], state["step"]),
                lr=lr,
                betas=options["betas"],
                epsilon=options["eps"],
                ok=ok,
                is_direction=is_direction,
                shadow_RD=self._shadows.held(parameter),
            )
        torch.autograd.graph.increment_version(parameter)
        self._shadows.renew(parameter)
        parameter.grad = None  # done

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
def renormalise_(dictionary: TrainableDictionary, ok: Tensor) -> None:
    """Give every decoder row norm one again in place; a skipped step keeps every bit."""
    for part in dictionary.parts:
        decoder = part.coder.W_dec
        norms = decoder.norm(dim=1, keepdim=True).clamp(min=1e-8)
        decoder.div_(torch.where(ok, norms, torch.ones_like(norms)))


@torch.no_grad()
def project_(dictionary: TrainableDictionary) -> None:
    """Put parameters of activations back into their allowed range in place."""
    for part in dictionary.parts:
        part.coder.activation.project_()
