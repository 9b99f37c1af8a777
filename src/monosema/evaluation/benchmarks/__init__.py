"""Deeper benchmarks of a coder, offline, on data that the caller supplies.

Each is a function that returns a frozen report with its seed and bootstrap intervals; what a score means, and what
is known against it, is in the function's docstring. ``probes.py`` fits the linear probes that they share,
``rows.py`` checks and encodes the rows they are given.
"""

from monosema.evaluation.benchmarks.ablation import AblationOptions
from monosema.evaluation.benchmarks.absorption import AbsorptionOptions, first_letters, measure_absorption
from monosema.evaluation.benchmarks.meta import measure_meta
from monosema.evaluation.benchmarks.ravel import AttributeData, RavelOptions, cause_and_isolation
from monosema.evaluation.benchmarks.scr import spurious_removal
from monosema.evaluation.benchmarks.tpp import targeted_perturbation
from monosema.evaluation.benchmarks.words import capture_words

__all__ = [
    "AblationOptions",
    "AbsorptionOptions",
    "AttributeData",
    "RavelOptions",
    "capture_words",
    "cause_and_isolation",
    "first_letters",
    "measure_absorption",
    "measure_meta",
    "spurious_removal",
    "targeted_perturbation",
]
