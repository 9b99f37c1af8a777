"""Forward passes for the predictions that a task counts: logits at those positions only, some rows at a time.

Shape letters: n predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from monosema.evaluation.tasks import Task
from monosema.models import LanguageModel
from monosema.models.hooks import EditFunction
from monosema.models.language_model import SiteName
from monosema.models.unembedding import Unembedding

_ELEMENTS_COMPARED = {"cpu": 2**19}
"""Logits looked at at a time, by device (2**26 where not named): few enough for the cache of a CPU."""

_ELEMENTS_MULTIPLIED = {"cpu": 2**26}
"""Logits multiplied out at a time (2**28): enough rows for the product to run at its full rate."""


@dataclass(frozen=True)
class Logits:
    """Of one pass, at the positions of a task."""

    n: int
    """Predictions."""
    n_compared: int
    """Rows of a part."""
    n_multiplied: int
    """Rows of a call of ``rows``: a multiple of those of a part."""
    rows: Callable[[slice], Tensor]
    """Some predictions' logits ``[m, V]``; a later call may overwrite them."""

    def parts(self) -> Iterator[Tensor]:
        """All of them, ``[m, V]`` after ``[m, V]``: the same rows for every pass of a task."""
        for start in range(0, self.n, self.n_multiplied):
            stop = min(start + self.n_multiplied, self.n)
            yield from self.rows(slice(start, stop)).split(self.n_compared)


@final
class Predictor:
    """Passes through one model."""

    def __init__(self, model: LanguageModel, edited: Iterable[SiteName] = ()) -> None:
        """``edited`` are the sites that passes edit."""
        self._model = model
        self._unembedding = Unembedding(model, edited)

    def predict(
        self, task: Task, names: Iterable[str] = (), *, edits: Mapping[SiteName, EditFunction] | None = None
    ) -> tuple[Logits, dict[str, Tensor]]:
        """One forward pass without gradients, with ``edits``: logits, and the values of ``names``."""
        with self._model.edits(edits or {}):
            return self._predict(task, [*names])

    def _predict(self, task: Task, names: list[str]) -> tuple[Logits, dict[str, Tensor]]:
        positions, last = task.positions, self._unembedding.site
        if last:
            values = self._model.capture(task.tokens, [*names, last], documents_BT=task.documents)
            hidden = values[last].flatten(0, 1)
            hidden = hidden[positions.to(hidden.device)]
            logits = self._logits(
                len(positions), hidden.device.type, lambda part: self._unembedding.logits(hidden[part])
            )
            return logits, {name: values[name] for name in names}
        whole, values = self._model.logits_and_sites(task.tokens, names, documents_BT=task.documents)
        flat, positions = whole.flatten(0, 1), positions.to(whole.device)
        return self._logits(len(positions), flat.device.type, lambda part: flat[positions[part]], whole=True), values

    def _logits(self, n: int, device: str, rows: Callable[[slice], Tensor], *, whole: bool = False) -> Logits:
        compared = max(1, _ELEMENTS_COMPARED.get(device, 2**26) // self._model.vocab_size)
        multiplied = max(1, _ELEMENTS_MULTIPLIED.get(device, 2**28) // self._model.vocab_size)
        return Logits(n, compared, compared if whole else max(1, multiplied // compared) * compared, rows)
