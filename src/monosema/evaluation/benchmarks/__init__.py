"""Benchmarks: whether a dictionary has found what is known to be there.

Its job: compare a coder with a truth, offline, with intervals. ``ground_truth`` has the features themselves,
``probing`` labels of texts and tokens. Each docstring says what its number cannot tell.

May import what ``evaluation`` may. Start reading in ``truth.py`` and ``probing.py``; ``labels.py`` labels the
tokens of Python source, ``intervals.py`` resamples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.evaluation.benchmarks.ablation": ("AblationOptions",),
    "monosema.evaluation.benchmarks.absorption": ("AbsorptionOptions", "first_letters", "measure_absorption"),
    "monosema.evaluation.benchmarks.meta": ("measure_meta",),
    "monosema.evaluation.benchmarks.ravel": ("AttributeData", "RavelOptions", "cause_and_isolation"),
    "monosema.evaluation.benchmarks.scr": ("spurious_removal",),
    "monosema.evaluation.benchmarks.tpp": ("targeted_perturbation",),
    "monosema.evaluation.benchmarks.words": ("capture_words",),
    "monosema.evaluation.benchmarks.truth": ("KnownFeatures", "ground_truth"),
    "monosema.evaluation.benchmarks.truth_report": ("FeatureMatches", "GroundTruthReport"),
    "monosema.evaluation.benchmarks.intervals": ("Interval",),
    "monosema.evaluation.benchmarks.labels": ("PYTHON_LABELS", "TokenLabels"),
    "monosema.evaluation.benchmarks.probing": ("probe_texts", "probe_tokens"),
    "monosema.evaluation.benchmarks.probing_config": ("ProbingConfig",),
    "monosema.evaluation.benchmarks.probing_report": ("ProbedTask", "ProbingReport", "SparseAccuracy"),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.evaluation.benchmarks.intervals import Interval
    from monosema.evaluation.benchmarks.labels import PYTHON_LABELS, TokenLabels
    from monosema.evaluation.benchmarks.probing import probe_texts, probe_tokens
    from monosema.evaluation.benchmarks.probing_config import ProbingConfig
    from monosema.evaluation.benchmarks.probing_report import ProbedTask, ProbingReport, SparseAccuracy
    from monosema.evaluation.benchmarks.truth import KnownFeatures, ground_truth
    from monosema.evaluation.benchmarks.truth_report import FeatureMatches, GroundTruthReport
