"""The last phase of a run, in which only some weights are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monosema.coders import TrainableDictionary
from monosema.training.config import TrainingConfig
from monosema.training.optimizer import CoderOptimizer
from monosema.training.terms import FineTuning


class FineTuner:
    """Adam, with fresh moments, over a choice of weights: decoder rows' scales, the decoder, the output bias.

    With scales s the decoder is ``W_dec_i = s_i D_i`` with the directions ``D_i`` it had when the phase began, and
    ``∂loss/∂s_i = ⟨∂loss/∂W_dec_i, D_i⟩``. Folded by construction: no scale is saved.
    """

    def __init__(self, dictionary: TrainableDictionary, phase: FineTuning, config: TrainingConfig, n_steps: int):
        self._dictionary = dictionary
        self._scaled = phase.weights in ("scale", "unrotated_decoder")
        own = dict(dictionary.named_parameters())
        trained: dict[str, Tensor] = {}
        self._directions: dict[str, Tensor] = {}
        for part in dictionary.parts:
            name = f"{part.prefix}W_dec"
            if self._scaled:
                self._directions[name] = own[name].detach().clone()
                trained[name] = nn.Parameter(torch.ones_like(own[name][:, 0]))
            else:
                trained[name] = own[name]
        if phase.weights != "scale":
            trained |= {name: value for name, value in own.items() if name == "b_dec"}
        self._trained = trained
        self._optimizer = CoderOptimizer(trained, config, n_steps, dictionary.device)

    @torch.no_grad()
    def step_(self, gradients: Mapping[str, Tensor], loss: Tensor, lr: float) -> Tensor:
        """Update the chosen weights in place; returns a 0-d bool, False where the step was skipped."""
        chosen = {name: gradients[name] for name in self._trained}
        for name, directions in self._directions.items():
            chosen[name] = (gradients[name] * directions).sum(1)
        ok = self._optimizer.step_(chosen, loss, lr)
        own = dict(self._dictionary.named_parameters())
        for name, directions in self._directions.items():
            own[name].copy_(directions * self._trained[name].unsqueeze(1))
        return ok

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"adam.{name}": value for name, value in self._optimizer.state_dict().items()}
        state |= {f"directions.{name}": value for name, value in self._directions.items()}
        return state | {f"scale.{name}": self._trained[name].detach() for name in self._directions}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self._directions:
            self._directions[name] = state[f"directions.{name}"].to(self._directions[name])
            self._trained[name].copy_(state[f"scale.{name}"])
        self._optimizer.load_state_dict(
            {name.removeprefix("adam."): value for name, value in state.items() if name.startswith("adam.")}
        )
