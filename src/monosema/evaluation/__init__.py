"""Evaluation: how good a coder is, on text it was not trained on.

Its job: run a coder as it is, with or without its model, and fill one ``Report``. The numbers are defined in
``metrics``; here is only what to measure them on: which contexts, which positions, which runs of the model.

May import: ``core``, ``metrics``, ``coders``, ``models``, ``splicing``, ``data``. Start reading in ``evaluate.py``;
``contexts.py`` chooses the text, ``measure.py`` runs the coder on rows, ``runs.py`` goes over the batches and runs the
model clean, spliced and ablated from the parts in ``edited_runs.py`` and ``predictor.py``, ``predictions.py`` compares
these and ``patterns.py`` their attention, ``findings.py`` sums up what each dictionary shows and ``losses.py`` makes
figures of it. ``replacement.py`` puts coders in place of all MLPs at once, by the run in ``replaced.py``;
``crosscoder.py`` compares the sites of a crosscoder. ``calibrate.py`` sets thresholds by the L0 they give.
``saebench.py`` writes a report as SAEBench does, ``short_report.py`` the figures that are read first. ``benchmarks``
compares a coder with what is known to be there; ``page`` is the HTML page that compares reports.
"""

from monosema.evaluation.calibrate import calibrate_threshold
from monosema.evaluation.crosscoder import evaluate_crosscoder
from monosema.evaluation.crosscoder_report import CrosscoderReport, CrosscoderThresholds, LatentSites, SiteFigures
from monosema.evaluation.evaluate import evaluate, evaluate_many
from monosema.evaluation.latent_table import LatentTable
from monosema.evaluation.loss_recovered import LossRecovered, loss_recovered
from monosema.evaluation.page import write_page
from monosema.evaluation.replacement import evaluate_replacement
from monosema.evaluation.replacement_report import ReplacedLayer, ReplacementReport
from monosema.evaluation.report import AblationLosses, ModelLosses, Report
from monosema.evaluation.saebench import core_layout
from monosema.evaluation.short_report import short_report

__all__ = [
    "AblationLosses",
    "CrosscoderReport",
    "CrosscoderThresholds",
    "LatentSites",
    "LatentTable",
    "LossRecovered",
    "ModelLosses",
    "ReplacedLayer",
    "ReplacementReport",
    "Report",
    "SiteFigures",
    "calibrate_threshold",
    "core_layout",
    "evaluate",
    "evaluate_crosscoder",
    "evaluate_many",
    "evaluate_replacement",
    "loss_recovered",
    "short_report",
    "write_page",
]
