"""monosema: train, evaluate and read sparse dictionaries of language-model activations.

>>> import monosema as ms
>>> ms.BatchTopK(k=32)
BatchTopK(k=32, inference='threshold', weight_by_decoder_norm=True, threshold_rate=0.05)

Names are imported when first used, so that ``import monosema`` and the command line's help stay fast.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from monosema.core.lazy import open_exports
from monosema.core.openmp import let_threads_sleep

# Torch reads this when it first allocates: huge pages for large CPU tensors make a training step a tenth faster.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
let_threads_sleep()

_HOMES = {
    "monosema.coders": ("CLT", "SAE", "CrossLayerTranscoder", "Crosscoder", "Latents", "SparseCoder", "Transcoder"),
    "monosema.core.errors": ("UserError",),
    "monosema.data": (
        "ActivationCache",
        "ActivationStream",
        "Mixture",
        "TextSource",
        "Tokens",
        "load_tokens",
        "pretokenize",
    ),
    "monosema.data.packing_config": ("Packing", "Positions"),
    "monosema.evaluation": (
        "CrosscoderReport",
        "CrosscoderThresholds",
        "ReplacementReport",
        "Report",
        "calibrate_threshold",
        "evaluate",
        "evaluate_crosscoder",
        "evaluate_many",
        "evaluate_replacement",
        "loss_recovered",
    ),
    "monosema.features": ("FeatureStore", "PromptReading", "collect_features", "read_prompt"),
    "monosema.hub": ("load", "save"),
    "monosema.models": ("LanguageModel", "load_model"),
    "monosema.runs": ("Plan", "Session", "TrainingResult", "open_session", "plan", "train"),
    "monosema.runs.config": ("EvaluationOptions", "RunConfig"),
    "monosema.training": ("Callback", "RunInterrupted", "Trainer", "geometric_median"),
    "monosema.training.config": ("TrainingConfig",),
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
}
_get = open_exports(__name__, _HOMES, "monosema.coders.activations.configs")

if TYPE_CHECKING:
    from monosema.coders import CLT, SAE, Crosscoder, CrossLayerTranscoder, Latents, SparseCoder, Transcoder
    from monosema.coders.activations.configs import *  # noqa: F403
    from monosema.core.errors import UserError
    from monosema.data import ActivationCache, ActivationStream, Mixture, TextSource, Tokens, load_tokens, pretokenize
    from monosema.data.packing_config import Packing, Positions
    from monosema.evaluation import (
        CrosscoderReport,
        CrosscoderThresholds,
        ReplacementReport,
        Report,
        calibrate_threshold,
        evaluate,
        evaluate_crosscoder,
        evaluate_many,
        evaluate_replacement,
        loss_recovered,
    )
    from monosema.features import FeatureStore, PromptReading, collect_features, read_prompt
    from monosema.hub import load, save
    from monosema.models import LanguageModel, load_model
    from monosema.runs import Plan, Session, TrainingResult, open_session, plan, train
    from monosema.runs.config import EvaluationOptions, RunConfig
    from monosema.training import Callback, RunInterrupted, Trainer, geometric_median
    from monosema.training.config import TrainingConfig
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


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("monosema")
    try:
        return _get(name)
    except AttributeError as error:
        from monosema.core.peers_attributes import OF_MODULE, attribute_hint

        hint = attribute_hint("monosema", name, OF_MODULE)
        if hint is None:
            raise
        raise AttributeError(hint) from error


def __dir__() -> list[str]:
    return [*_get("__all__"), "__version__"]
