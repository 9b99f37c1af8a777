"""What adjusts a sparsity loss while it runs: the coefficient towards a wanted L0, and p in p-annealing."""

from __future__ import annotations

import math
from typing import Any

from monosema.training.terms import Lp

GAIN, LEAD, MEMORY = 0.1, 20.0, 5.0
FAR = 1.5


class TargetL0Controller:
    """Adjusts ``coefficient`` multiplicatively until the mean L0 is ``target``: a proportional-integral controller.

    With the error ``e_t = log(L̄_t / target)`` of an exponential mean L̄ of L0 over about five steps, each step does
    ``log λ ← log λ + 0.1 · (clip(e_t, ±1) + 20 · (e_t − e_{t−1}))``, at most ±0.2. L0 follows λ only as fast as weights
    move; the second part, what L0 is about to do in the next twenty steps, keeps λ from overshooting meanwhile. While
    L̄ exceeds 1.5 times the target, λ does not rise above the bound ``most``, and falls to it as fast as it may.
    """

    def __init__(self, coefficient: float, target: float):
        self.coefficient = coefficient
        self.target = target
        self._mean_l0: float | None = None

    def update_(self, l0: float, most: float = math.inf) -> None:
        """Take one batch's mean L0 into account, in place."""
        before = l0 if self._mean_l0 is None else self._mean_l0
        self._mean_l0 = before + (l0 - before) / MEMORY
        error, change = self._error(self._mean_l0), self._error(self._mean_l0) - self._error(before)
        step = GAIN * (min(1.0, max(-1.0, error)) + LEAD * change)
        if error > math.log(FAR):
            step = min(step, math.log(most / self.coefficient) if most > 0 else -math.inf)
        self.coefficient *= math.exp(min(0.2, max(-0.2, step)))

    def _error(self, l0: float) -> float:
        return math.log(max(l0, 1e-3 * self.target) / self.target)

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
