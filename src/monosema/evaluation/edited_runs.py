"""Passes of models over one batch with something in the place of sites, each from the block of the first site on.

Shape letters: B contexts, T positions, H heads; n counts the positions of the batch that are not special.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from monosema.evaluation.predictions import CleanPredictions
from monosema.evaluation.predictor import Predictor
from monosema.evaluation.tasks import Task
from monosema.models import LanguageModel
from monosema.models.hooks import EditFunction
from monosema.models.language_model import SiteName
from monosema.models.patterns import attention_pattern
from monosema.models.splice import instead, placed
from monosema.models.suffix import Suffix

Place = tuple[str, str]
"""The name of a model (empty for a single one) and a hook name there."""

Written = tuple[Place, ...]
"""The sites that a dictionary writes, in the order in which they lie side by side."""

Values = Mapping[Place, Tensor]
"""Captured values ``[B, T, width]``."""


@final
@dataclass(frozen=True)
class EditedRuns:
    """What they have in common."""

    models: Mapping[str, LanguageModel]
    """By name."""
    predictors: Mapping[str, Predictor]
    """By the model's name, of those with a site that is written."""
    suffixes: Mapping[Written, Mapping[str, Suffix]]
    """By sites written and model, what runs again."""
    task: Task
    """What is predicted."""
    counted: Tensor
    """``[B, T]`` bool: positions that are edited."""
    clean: Mapping[str, CleanPredictions]
    """By model, the clean run's predictions."""
    values: Values
    """The clean run's, of sites and of where passes begin."""
    clean_patterns: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """By model and layer ``[B, H, T, T]``, as they are asked for."""

    def everywhere(self, level: Tensor) -> Tensor:
        """``[n, d_out]``: ``level [d_out]`` for each position that counts."""
        return level.expand(int(self.counted.sum()), -1)

    def edited(self, written: Written, rows: Tensor, run: str) -> dict[str, Tensor]:
        """By model, the terms of its predictions with ``rows [n, d_out]`` in the place of the sites written."""
        found = {}
        for key, edits in self._edits(written, rows).items():
            with self._resumed(written, key):
                logits, _ = self.predictors[key].predict(self.task, edits=edits)
            found[key] = self.clean[key].compared(logits, run)
        return found

    def patterns(self, key: str, layer: int, written: Written, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One model's attention patterns ``[B, H, T, T]`` in a layer, clean and with ``rows`` in place."""
        model, documents = self.models[key], self.task.documents
        with self._resumed(written, key):
            if (key, layer) not in self.clean_patterns:
                clean = attention_pattern(model, self.task.tokens, layer, documents_BT=documents)
                self.clean_patterns[key, layer] = clean
            with model.edits(self._edits(written, rows)[key]):
                edited = attention_pattern(model, self.task.tokens, layer, documents_BT=documents)
        return self.clean_patterns[key, layer], edited

    def _edits(self, written: Written, rows: Tensor) -> dict[str, dict[SiteName, EditFunction]]:
        """By model: its sites written become ``rows [n, d_out]``."""
        edits: dict[str, dict[SiteName, EditFunction]] = {}
        widths = [self.values[place].shape[-1] for place in written]
        for place, new in zip(written, rows.split(widths, 1), strict=True):
            edits.setdefault(place[0], {})[place[1]] = instead(placed(self.values[place], self.counted, new))
        return edits

    def _resumed(self, written: Written, key: str) -> AbstractContextManager[None]:
        """Inside, a model's passes begin where the sites written change something."""
        suffix = self.suffixes[written][key]
        return suffix.resumed(self.values[key, suffix.start_name] if suffix.start_name else None)
