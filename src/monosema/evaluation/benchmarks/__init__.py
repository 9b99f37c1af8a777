"""Benchmarks: whether a dictionary has found what is known to be there, offline, on data that the caller supplies.

Each is a function that takes a coder, data and a config of its own, and returns a frozen report with the config (seeds
included) and bootstrap intervals; what a score means, and what is known against it, is in the function's docstring:

- ``ground_truth``: against the features that synthetic activations were made of (``truth.py``);
- ``probe_texts``, ``probe_tokens``: k-sparse probing (``probing.py``; ``labels.py`` labels Python source);
- ``measure_absorption``: feature absorption on a label hierarchy (``absorption.py``);
- ``targeted_perturbation``, ``spurious_removal``: TPP and SCR (``tpp.py``, ``scr.py``, on ``ablation.py``);
- ``cause_and_isolation``: RAVEL's attributes (``ravel.py``);
- ``measure_meta``: what meta-dictionaries of decoder directions explain (``meta.py``; ``runs.decoder_structure``
  trains them).

They share ``rows.py`` and ``texts.py`` (activations and latents of rows, texts and words), ``splits.py`` (what is
held out), ``probes.py`` (logistic regression), ``intervals.py``, ``config.py`` and ``report.py``. ``data_files.py``
reads their data from files and ``saebench.py`` writes reports as SAEBench does. May import what ``evaluation`` may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_ROOM = "monosema.evaluation.benchmarks"
_HOMES = {
    f"{_ROOM}.absorption": ("first_letters", "measure_absorption"),
    f"{_ROOM}.absorption_report": ("AbsorptionReport",),
    f"{_ROOM}.config": (
        "AblationConfig",
        "AbsorptionConfig",
        "MetaConfig",
        "ProbingConfig",
        "RavelConfig",
        "TruthConfig",
    ),
    f"{_ROOM}.intervals": ("Interval",),
    f"{_ROOM}.labels": ("PYTHON_LABELS", "TokenLabels"),
    f"{_ROOM}.meta": ("MetaReport", "measure_meta"),
    f"{_ROOM}.probing": ("probe_texts", "probe_tokens"),
    f"{_ROOM}.probing_report": ("ProbingReport",),
    f"{_ROOM}.ravel": ("cause_and_isolation",),
    f"{_ROOM}.ravel_prompts": ("AttributeData",),
    f"{_ROOM}.ravel_report": ("RavelReport",),
    f"{_ROOM}.report": ("BenchmarkReport",),
    f"{_ROOM}.rows": ("EncodedRows", "encode_rows"),
    f"{_ROOM}.saebench": ("to_saebench",),
    f"{_ROOM}.scr": ("RemovalReport", "spurious_removal"),
    f"{_ROOM}.texts": ("text_rows", "word_rows"),
    f"{_ROOM}.tpp": ("PerturbationReport", "targeted_perturbation"),
    f"{_ROOM}.truth": ("KnownFeatures", "ground_truth"),
    f"{_ROOM}.truth_report": ("GroundTruthReport",),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.evaluation.benchmarks.absorption import first_letters, measure_absorption
    from monosema.evaluation.benchmarks.absorption_report import AbsorptionReport
    from monosema.evaluation.benchmarks.config import (
        AblationConfig,
        AbsorptionConfig,
        MetaConfig,
        ProbingConfig,
        RavelConfig,
        TruthConfig,
    )
    from monosema.evaluation.benchmarks.intervals import Interval
    from monosema.evaluation.benchmarks.labels import PYTHON_LABELS, TokenLabels
    from monosema.evaluation.benchmarks.meta import MetaReport, measure_meta
    from monosema.evaluation.benchmarks.probing import probe_texts, probe_tokens
    from monosema.evaluation.benchmarks.probing_report import ProbingReport
    from monosema.evaluation.benchmarks.ravel import cause_and_isolation
    from monosema.evaluation.benchmarks.ravel_prompts import AttributeData
    from monosema.evaluation.benchmarks.ravel_report import RavelReport
    from monosema.evaluation.benchmarks.report import BenchmarkReport
    from monosema.evaluation.benchmarks.rows import EncodedRows, encode_rows
    from monosema.evaluation.benchmarks.saebench import to_saebench
    from monosema.evaluation.benchmarks.scr import RemovalReport, spurious_removal
    from monosema.evaluation.benchmarks.texts import text_rows, word_rows
    from monosema.evaluation.benchmarks.tpp import PerturbationReport, targeted_perturbation
    from monosema.evaluation.benchmarks.truth import KnownFeatures, ground_truth
    from monosema.evaluation.benchmarks.truth_report import GroundTruthReport
