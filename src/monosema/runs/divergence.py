"""Saying that a dictionary explains less than nothing: its predictions are worse than the mean of the activations."""

from __future__ import annotations

from typing import Any

from monosema.core.logs import get_logger
from monosema.training import Callback, Trainer
from monosema.training.schedules import automatic_lr

logger = get_logger("monosema.runs")

_LARGE_LR = 3.0
"""Times ``lr="auto"``, from where the learning rate is named as the cause."""
_BEGINNING = 0.1
"""Share of a run in which a value below 0 says nothing yet."""


def explains_nothing(trainer: Trainer, fve: float | None) -> str | None:
    """A message with the likely cause where ``fve`` is below 0; None where it is not, or is not defined."""
    if fve is None or not fve < 0:
        return None
    width = max(part.coder.d_sae for part in trainer.coder.parts)
    usual = automatic_lr(width, trainer.batch_size, trainer.n_main_steps or trainer.n_steps)
    causes = []
    if trainer.lr > _LARGE_LR * usual:
        causes.append(
            f"lr={trainer.lr:g} is {trainer.lr / usual:.3g} times what lr='auto' gives ({usual:.2g}): lower it"
        )
    if trainer.config.input_scaling == "none":
        causes.append("input_scaling='none' trains on activations of any size: use 'expected_norm'")
    if not causes:
        causes.append(f"lower lr (now {trainer.lr:g}), train for longer, or look for outliers in the activations")
    return f"FVE is {fve:,.4g}, so predictions are worse than the mean of the activations; {'; '.join(causes)}"


class DivergenceWarning(Callback):
    """Warns once in a call, where a logged ``fve`` is below 0 after the beginning of the run and before its end."""

    def __init__(self, name: str):
        self._name, self._is_told = name, False

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        step = trainer.step_number
        if self._is_told or not _BEGINNING * trainer.n_steps < step < trainer.n_steps:
            return
        message = explains_nothing(trainer, metrics.get("fve"))
        if message is not None:
            self._is_told = True
            logger.warning(
                "%sstep %d of %d: %s", f"{self._name}: " if self._name else "", step, trainer.n_steps, message
            )
