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
from monosema.evaluation.predictor import Logits
from monosema.evaluation.tasks import Task
from monosema.metrics import log_probs, negative_entropy, token_cross_entropy, token_kl_from, top_token

TERMS = ("n", "ce", "kl", "top1_agreement")
"""What is summed over predictions: their number, cross-entropy, ``KL(clean || run)`` and whether the most probable
token is the clean run's."""


@dataclass(frozen=True)
class _Part:
    """Some successive predictions of a batch."""

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

    def __init__(self, logits: Logits, task: Task, where: str) -> None:
        """Of ``logits`` at the task's positions; ``where`` names site and batch in errors.

        Raises ``DataError`` where a loss is not finite.
        """
        self._where = where
        self._parts: list[_Part] = []
        losses, start = [], 0
        for part in logits.parts():
            targets = task.targets[start : start + len(part)].to(part.device)
            start += len(part)
            log_p = log_probs(part)
            p = log_p.exp()
            self._parts.append(_Part(targets, p, negative_entropy(log_p, p), top_token(log_p)))
            losses.append(token_cross_entropy(log_p, targets))
        loss = _joined(losses)
        self.terms = self._checked(
            torch.stack([torch.ones_like(loss), loss, loss * 0, torch.ones_like(loss)], 1), "clean"
        )
        """``[n, 4]`` float64: ``TERMS`` of the clean run itself."""

    def compared(self, logits: Logits, run: str) -> Tensor:
        """``[n, 4]`` float64: ``TERMS`` of another run with ``logits`` there; errors call it ``run``."""
        losses, divergences, agreements = [], [], []
        for part, clean in zip(logits.parts(), self._parts, strict=True):
            log_q = log_probs(part)
            losses.append(token_cross_entropy(log_q, clean.targets))
            agreements.append(log_q.gather(-1, clean.top.unsqueeze(-1)).squeeze(-1) == log_q.amax(-1))
            divergences.append(token_kl_from(clean.p, clean.negative_entropy, log_q, overwrites=True))
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


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
