"""Training a sparse coder on rows of activations, wherever they come from.

Imports ``coders``, ``kernels``, ``metrics`` and ``core``; knows no model, no text, no files but its checkpoints. Start
with ``trainer`` (one step), then ``loop`` (many, with checkpoints). ``term`` says what a term of the objective is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.training.checkpoint": (
        "Checkpoint",
        "Checkpoints",
    ),
    "monosema.training.checkpoint_plan": ("CheckpointPlan",),
    "monosema.training.config": ("TrainingConfig",),
    "monosema.training.initial": (
        "GeometricMedian",
        "geometric_median",
    ),
    "monosema.training.loop": (
        "Callback",
        "RunInterrupted",
        "fit",
    ),
    "monosema.training.terms": (
        "L0",
        "L1",
        "AuxK",
        "FineTuning",
        "GhostGradients",
        "HierarchicalTopK",
        "Lp",
        "Matryoshka",
        "PreActivationLoss",
        "QuadraticL0",
        "RatioL0",
        "Resample",
        "SparseConnection",
        "Tanh",
    ),
    "monosema.training.trainer": (
        "INITIAL_ROWS",
        "NonFiniteStepError",
        "Trainer",
    ),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.training.checkpoint import Checkpoint, Checkpoints
    from monosema.training.checkpoint_plan import CheckpointPlan
    from monosema.training.config import TrainingConfig
    from monosema.training.initial import GeometricMedian, geometric_median
    from monosema.training.loop import Callback, RunInterrupted, fit
    from monosema.training.terms import (
        L0,
        L1,
        AuxK,
        FineTuning,
        GhostGradients,
        HierarchicalTopK,
        Lp,
        Matryoshka,
        PreActivationLoss,
        QuadraticL0,
        RatioL0,
        Resample,
        SparseConnection,
        Tanh,
    )
    from monosema.training.trainer import INITIAL_ROWS, NonFiniteStepError, Trainer
