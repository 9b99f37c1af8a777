"""Training a sparse coder on rows of activations, wherever they come from.

Imports ``coders``, ``kernels``, ``metrics`` and ``core``; knows no model, no text, no files but its checkpoints. Start
with ``trainer`` (one step), then ``loop`` (many, with checkpoints).
"""

from monosema.training.checkpoint import Checkpoint, Checkpoints
from monosema.training.config import L0, L1, AuxK, TrainingConfig
from monosema.training.initial import GeometricMedian, geometric_median
from monosema.training.loop import Callback, RunInterrupted, fit
from monosema.training.trainer import INITIAL_ROWS, NonFiniteStepError, Trainer

__all__ = [
    "INITIAL_ROWS",
    "L0",
    "L1",
    "AuxK",
    "Callback",
    "Checkpoint",
    "Checkpoints",
    "GeometricMedian",
    "NonFiniteStepError",
    "RunInterrupted",
    "Trainer",
    "TrainingConfig",
    "fit",
    "geometric_median",
]
