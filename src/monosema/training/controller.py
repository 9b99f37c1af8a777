"""What adjusts a sparsity loss while it runs: the coefficient towards a wanted L0, and p in p-annealing."""

from __future__ import annotations

import math
from typing import Any

from monosema.training.terms import Lp


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


QUEUE = 10
"""Steps before an update of p over which penalties are averaged."""


class PAnnealer:
    """Lowers p in equal steps and re-scales the coefficient so that the penalty keeps its size.

    Update j, at step ``start + j (n_steps - start) / n_updates``, takes p from ``p_j`` to ``p_(j+1)`` (evenly spaced
    from ``p`` to ``p_end``) and multiplies ``factor`` by mean penalty(p_j) / mean penalty(p_(j+1)) over the last ten
    steps. Source: Karvonen et al. 2024, arXiv 2408.00113, section 3.2.
    """

    def __init__(self, config: Lp, n_steps: int):
        p_end = config.p if config.p_end is None else config.p_end
        n = config.n_updates
        start = config.anneal_start_fraction * n_steps
        self.powers = [config.p + (p_end - config.p) * j / n for j in range(n + 1)]
        self.update_steps = [round(start + j * (n_steps - start) / n) for j in range(n)]
        self.index = 0
        self.factor = 1.0
        self._queue: list[tuple[float, float]] = []

    @property
    def p(self) -> float:
        """The current power."""
        return self.powers[self.index]

    def next_p(self, step: int) -> float | None:
        """The coming power, in the last ten steps before its update, when its penalty must be known too."""
        if self.index >= len(self.update_steps) or self.powers[self.index + 1] == self.p:
            return None
        due = self.update_steps[self.index]
        return self.powers[self.index + 1] if due - QUEUE <= step < due or step >= due else None

    def update_(self, step: int, penalty: float, next_penalty: float) -> None:
        """Take the penalties of ``step`` into account in place; after it p may have changed."""
        self._queue = [*self._queue[1 - QUEUE :], (penalty, next_penalty)]
        if step + 1 >= self.update_steps[self.index]:
            now, coming = (sum(values) for values in zip(*self._queue, strict=True))
            self.factor *= now / coming if coming > 0 else 1.0
            self.index, self._queue = self.index + 1, []

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index, "factor": self.factor, "queue": [list(pair) for pair in self._queue]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index, self.factor = int(state["index"]), float(state["factor"])
        self._queue = [(float(a), float(b)) for a, b in state["queue"]]
