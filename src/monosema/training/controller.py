"""Keeps a sparsity coefficient where the wanted L0 is."""

from __future__ import annotations

import math


class TargetL0Controller:
    """Adjusts ``coefficient`` multiplicatively until the mean L0 is ``target``.

    ``log λ ← log λ + gain · clip(log(L0 / target), -1, 1)`` each step, on an exponential mean of L0 over about
    ``memory`` steps; the gain lets λ change by a factor e^12 over the run, at most 5 % a step.
    """

    def __init__(self, coefficient: float, target: float, n_steps: int, memory: int = 20):
        self.coefficient = coefficient
        self.target = target
        self.gain = min(0.05, 12.0 / max(1, n_steps))
        self._rate = 1 / memory
        self._mean_l0: float | None = None

    def update_(self, l0: float) -> None:
        """Take one batch's mean L0 into account, in place."""
        self._mean_l0 = l0 if self._mean_l0 is None else (1 - self._rate) * self._mean_l0 + self._rate * l0
        error = math.log(max(self._mean_l0, 1e-3) / self.target)
        self.coefficient *= math.exp(self.gain * min(1.0, max(-1.0, error)))

    def state_dict(self) -> dict[str, float | None]:
        return {"coefficient": self.coefficient, "mean_l0": self._mean_l0}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        coefficient = state["coefficient"]
        assert coefficient is not None
        self.coefficient, self._mean_l0 = coefficient, state["mean_l0"]
