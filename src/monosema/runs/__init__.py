"""Whole runs: the run folder, training with saving and evaluation as callbacks, sessions, the demo.

Composes ``training``, ``evaluation``, ``hub``, ``models`` and ``data``. Start with ``training``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.runs.config": ("RunConfig",),
    "monosema.runs.planning": ("Plan", "plan"),
    "monosema.runs.session": ("Session", "open_session"),
    "monosema.runs.training": ("TrainingResult", "train"),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.runs.config import RunConfig
    from monosema.runs.planning import Plan, plan
    from monosema.runs.session import Session, open_session
    from monosema.runs.training import TrainingResult, train
