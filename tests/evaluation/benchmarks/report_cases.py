"""A small report of every benchmark, measured on dictionaries whose latents are axes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from benchmark_cases import axis_sae

from monosema.evaluation.benchmarks import (
    AblationConfig,
    BenchmarkReport,
    Interval,
    KnownFeatures,
    MetaConfig,
    ProbingConfig,
    ProbingReport,
    RavelConfig,
    RavelReport,
    ground_truth,
    measure_absorption,
    measure_meta,
    spurious_removal,
    targeted_perturbation,
)
from monosema.evaluation.benchmarks.probing_report import ProbedTask, SparseAccuracy
from monosema.evaluation.benchmarks.ravel_report import AttributeScore

_CLASS = torch.arange(60) % 3
_X = torch.nn.functional.one_hot(_CLASS, 4).double() + 0.3 * torch.rand(
    60, 4, generator=torch.Generator().manual_seed(0)
)
_LETTERS = [("ant", "bee", "cow")[c] for c in _CLASS.tolist()]
_BOTH = Interval(0.75, 0.5, 1.0)
_SPARSE = (SparseAccuracy(k=1, latents=Interval(0.7, 0.6, 0.8), activations=Interval(0.6, 0.5, 0.7)),)


REPORTS: dict[str, BenchmarkReport] = {
    "truth": ground_truth(axis_sae(4), KnownFeatures(directions=torch.eye(4), magnitudes=torch.eye(4)[[0, 1, 1, 2]])),
    "probe": ProbingReport(
        sparse=_SPARSE,
        activations=Interval(0.9, 0.8, 1.0),
        tasks=(
            ProbedTask(
                label="comment",
                sparse=_SPARSE,
                activations=Interval(0.9, 0.8, 1.0),
                latents=(3,),
                n_train=40,
                n_test=10,
                converged=True,
            ),
        ),
        unit="token",
        d_in=4,
        d_sae=8,
        hook_name="site",
        model_name="model",
        config=ProbingConfig(),
        notes=("only 3 texts are held out",),
    ),
    "absorption": measure_absorption(axis_sae(4), _X, _LETTERS, {"a": ["ant"], "bc": ["bee", "cow"]}),
    "tpp": targeted_perturbation(axis_sae(4), _X, _LETTERS, AblationConfig(n_latents=(1, 2, 3))),
    "scr": spurious_removal(axis_sae(4), _X, _CLASS == 1, torch.arange(60) % 2 == 0, AblationConfig(n_latents=(2, 5))),
    "ravel": RavelReport(
        scores=tuple(
            AttributeScore(
                attribute=attribute,
                choice=choice,
                n_latents=3,
                cause=cause,
                isolation=_BOTH,
                disentangle=_BOTH,
                n_cause=4,
                n_isolation=4,
            )
            for attribute, cause in (("country", _BOTH), ("language", Interval(0.25, 0.0, 0.5)))
            for choice in ("mask", "top 5")
        ),
        disentangle={"mask": 0.625, "top 5": math.nan},
        answered={"country": 0.5, "language": 1.0},
        n_entities=6,
        d_sae=8,
        hook_name="site",
        model_name="model",
        config=RavelConfig(n_latents=(5,)),
    ),
    "meta": replace(measure_meta(axis_sae(4), {0: axis_sae(4), 3: axis_sae(4)}), config=MetaConfig()),
}
