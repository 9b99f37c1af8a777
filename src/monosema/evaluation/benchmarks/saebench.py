"""Reports in the JSON layout of SAEBench 0.6.0, for its graphs and for comparison with its published results.

The numbers are ours: where a benchmark differs from SAEBench's, its function's docstring says how.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monosema.core.config import to_plain
from monosema.core.errors import ConfigError
from monosema.evaluation.benchmarks.absorption_report import AbsorptionReport
from monosema.evaluation.benchmarks.intervals import Interval
from monosema.evaluation.benchmarks.meta import MetaReport
from monosema.evaluation.benchmarks.probing_report import ProbingReport, SparseAccuracy
from monosema.evaluation.benchmarks.ravel_report import MASK, RavelReport
from monosema.evaluation.benchmarks.report import BenchmarkReport
from monosema.evaluation.benchmarks.scr import RemovalReport
from monosema.evaluation.benchmarks.tpp import PerturbationReport
from monosema.evaluation.saebench_layout import envelope

_Figures = dict[str, float | int | None]

_ABLATED = (2, 5, 10, 20, 50, 100, 500)
_PROBED = (1, 2, 5, 10, 20, 50, 100)
"""The numbers of latents that the layout has keys for; others are left out."""


def to_saebench(
    report: BenchmarkReport, *, name: str = "", coder_config: Mapping[str, Any] | None = None, dataset: str = "data"
) -> dict[str, Any]:
    """``report`` as JSON values of SAEBench's layout, with every key it has; -1 is what was not measured.

    Our own report is in ``eval_result_unstructured``, with its intervals.

    Args:
        report: of absorption, probing, TPP, SCR, RAVEL (the trained mask, or else the largest choice) or
            meta-dictionaries.
        name: the dictionary's name, as graphs show it.
        coder_config: the dictionary's config, as JSON values.
        dataset: what the data is called.

    Raises ``ConfigError`` for a report that SAEBench has no layout for.
    """
    for kind, (eval_type, write) in _LAYOUTS.items():
        if isinstance(report, kind):
            metrics, details = write(report, dataset)
            config = getattr(report, "config", None)
            return envelope(
                eval_type,
                metrics,
                config={} if config is None else to_plain(config),
                details=details,
                coder_config=coder_config,
                name=name,
                unstructured=report.to_dict(),
            )
    raise ConfigError(f"SAEBench has no layout for the benchmark {report.benchmark!r}; save the report itself")


def _absorption(report: AbsorptionReport, dataset: str) -> tuple[dict[str, _Figures], list[dict[str, Any]]]:
    """Details are of parents that are a single letter, which is all that the layout allows."""
    parts: dict[str, list[float]] = {
        "absorption_fraction_score": [each.fraction.value for each in report.parents],
        "full_absorption_score": [each.full.value for each in report.parents],
        "num_split_features": [len(each.main_latents) for each in report.parents],
    }
    mean: _Figures = {f"mean_{key}": statistics.fmean(values) for key, values in parts.items()}
    mean |= {f"std_dev_{key}": _deviation(values) for key, values in parts.items()}
    details = [
        {
            "first_letter": each.parent,
            "mean_absorption_fraction": each.fraction.value,
            "full_absorption_rate": each.full.value,
            "num_full_absorption": round(each.full.value * each.n_rows),
            "num_probe_true_positives": each.n_rows,
            "num_split_features": len(each.main_latents),
        }
        for each in report.parents
        if len(each.parent) == 1 and each.parent.isalpha()
    ]
    return {"mean": mean}, details


def _probing(report: ProbingReport, dataset: str) -> tuple[dict[str, _Figures], list[dict[str, Any]]]:
    llm, sae = _accuracies(report.sparse, report.activations)
    details: list[dict[str, Any]] = []
    for task in report.tasks:
        own_llm, own_sae = _accuracies(task.sparse, task.activations)
        details.append({"dataset_name": f"{dataset}: {task.label}", **own_llm, **own_sae})
    return {"llm": llm, "sae": sae}, details


def _accuracies(sparse: Sequence[SparseAccuracy], whole: Interval) -> tuple[_Figures, _Figures]:
    """Of the model's activations and of latents; a probe on all latents is not fitted."""
    by_k = {each.k: each for each in sparse}
    llm: _Figures = {"llm_test_accuracy": whole.value}
    sae: _Figures = {"sae_test_accuracy": None}
    for k in _PROBED:
        llm[f"llm_top_{k}_test_accuracy"] = by_k[k].activations.value if k in by_k else None
        sae[f"sae_top_{k}_test_accuracy"] = by_k[k].latents.value if k in by_k else None
    return llm, sae


def _tpp(report: PerturbationReport, dataset: str) -> tuple[dict[str, _Figures], list[dict[str, Any]]]:
    by_n = {each.n_latents: each for each in report.scores}
    figures: _Figures = {}
    for n in _ABLATED:
        score = by_n.get(n)
        figures[f"tpp_threshold_{n}_total_metric"] = None if score is None else score.score.value
        figures[f"tpp_threshold_{n}_intended_diff_only"] = None if score is None else score.intended.value
        figures[f"tpp_threshold_{n}_unintended_diff_only"] = None if score is None else score.unintended.value
    return {"tpp_metrics": figures}, [{"dataset_name": dataset, **figures}]


def _scr(report: RemovalReport, dataset: str) -> tuple[dict[str, _Figures], list[dict[str, Any]]]:
    by_n = {each.n_latents: each for each in report.scores}
    figures: _Figures = {}
    for n in _ABLATED:
        score = by_n.get(n)
        figures[f"scr_dir1_threshold_{n}"] = None if score is None else score.target.value
        figures[f"scr_metric_threshold_{n}"] = None if score is None else score.score.value
        figures[f"scr_dir2_threshold_{n}"] = None if score is None else score.spurious.value
    return {"scr_metrics": figures}, [{"dataset_name": dataset, **figures}]


def _ravel(report: RavelReport, dataset: str) -> tuple[dict[str, _Figures], list[dict[str, Any]]]:
    choices = list(report.disentangle)
    choice = MASK if MASK in choices else choices[-1]
    own = [each for each in report.scores if each.choice == choice and each.n_isolation]
    figures: _Figures = {
        "disentanglement_score": report.disentangle[choice],
        "cause_score": statistics.fmean(each.cause.value for each in own) if own else None,
        "isolation_score": statistics.fmean(each.isolation.value for each in own) if own else None,
    }
    return {"ravel": figures}, []


def _meta(report: MetaReport, dataset: str) -> tuple[dict[str, _Figures], list[dict[str, Any]]]:
    figures: _Figures = {
        "decoder_fraction_variance_explained": report.fve,
        "train_time_seconds": None,
        "final_reconstruction_mse": None,
    }
    return {"meta_structure": figures}, []


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


_LAYOUTS: dict[type[BenchmarkReport], tuple[str, Callable[..., tuple[dict[str, _Figures], list[dict[str, Any]]]]]] = {
    AbsorptionReport: ("absorption_first_letter", _absorption),
    ProbingReport: ("sparse_probing", _probing),
    PerturbationReport: ("tpp", _tpp),
    RemovalReport: ("scr", _scr),
    RavelReport: ("ravel", _ravel),
    MetaReport: ("meta_structure_decoder_variance", _meta),
}
