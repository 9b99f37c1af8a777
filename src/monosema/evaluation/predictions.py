"""What a run of the model predicts, beside what the clean run predicts on the same tokens.

Shape letters: n predictions, V vocabulary. The clean run's probabilities are kept for one batch, so that any number of
other runs is compared with them by one pass over each one's logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.evaluation.tasks import Task
from monosema.metrics import log_probs, negative_entropy, token_cross_entropy, token_kl_from

TERMS = ("n", "ce", "kl", "top1_agreement")
"""What is summed over predictions: their number, cross-entropy, ``KL(clean || run)`` and whether the most probable
token is the clean run's."""

_LOG_PROB_ELEMENTS = {"cpu": 2**19}
"""Log-probabilities taken at a time, by device (2**26 where not named): few enough for the cache of a CPU."""


@dataclass(frozen=True)
class _Part:
    """Some successive predictions of a batch."""

    rows: slice | Tensor
    """Where their logits are, in the flattened batch."""
    inside: Tensor | None
    """Which of those rows count; None for all."""
    targets: Tensor
    """``[m]`` token ids to predict."""
    p: Tensor
    """``[m, V]``: the clean run's probabilities."""
    negative_entropy: Tensor
    """``[m]`` float64: ``sum_v p_v log p_v``."""
    top: Tensor
    """``[m]``: the clean run's most probable token."""


@final
class CleanPredictions:
    """The clean run's predictions on one batch."""

    def __init__(self, logits: Tensor, task: Task, where: str) -> None:
        """Of ``logits [B, T, V]``; ``where`` names site and batch in errors.

        Raises ``DataError`` where a loss is not finite.
        """
        self._where = where
        self._parts: list[_Part] = []
        flat = logits.flatten(0, 1)
        size = max(1, _LOG_PROB_ELEMENTS.get(logits.device.type, 2**26) // logits.shape[-1])
        positions, targets = task.positions.to(logits.device), task.targets.to(logits.device)
        losses = []
        for start in range(0, len(positions), size):
            at, target = positions[start : start + size], targets[start : start + size]
            rows, inside = _rows(at)
            log_p = log_probs(flat[rows])
            log_p = log_p if inside is None else log_p[inside]
            p = log_p.exp()
            self._parts.append(_Part(rows, inside, target, p, negative_entropy(log_p, p), log_p.argmax(-1)))
            losses.append(token_cross_entropy(log_p, target))
        loss = _joined(losses)
        self.terms = self._checked(
            torch.stack([torch.ones_like(loss), loss, loss * 0, torch.ones_like(loss)], 1), "clean"
        )
        """``[n, 4]`` float64: ``TERMS`` of the clean run itself."""

    def compared(self, logits: Tensor, run: str) -> Tensor:
        """``[n, 4]`` float64: ``TERMS`` of another run's ``logits [B, T, V]``; errors call it ``run``."""
        flat = logits.flatten(0, 1)
        losses, divergences, agreements = [], [], []
        for part in self._parts:
            log_q = log_probs(flat[part.rows])
            log_q = log_q if part.inside is None else log_q[part.inside]
            losses.append(token_cross_entropy(log_q, part.targets))
            agreements.append(log_q.gather(-1, part.top.unsqueeze(-1)).squeeze(-1) == log_q.amax(-1))
            divergences.append(token_kl_from(part.p, part.negative_entropy, log_q, overwrites=True))
        loss = _joined(losses)
        columns = [torch.ones_like(loss), loss, _joined(divergences), _joined(agreements).to(loss.dtype)]
        return self._checked(torch.stack(columns, 1), run)

    def _checked(self, terms: Tensor, run: str) -> Tensor:
        if len(terms) and not bool(terms[:, 1].isfinite().all()):
            raise DataError(
                f"the cross-entropy of the {run} run is {float(terms[:, 1].mean())} at {self._where}; the model's "
                "logits are not finite there. Load the model in bfloat16 or float32"
            )
        return terms


def _rows(positions: Tensor) -> tuple[slice | Tensor, Tensor | None]:
    """The rows to read for ascending ``positions``: a slice, where little of it is read in vain."""
    first, last = int(positions[0]), int(positions[-1])
    n = last + 1 - first
    if n == len(positions):
        return slice(first, last + 1), None
    if n <= 1.25 * len(positions):
        return slice(first, last + 1), positions - first
    return positions, None


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
