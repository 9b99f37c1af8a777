"""``core_layout``: a report in the JSON layout of SAEBench 0.6.0's ``core``, for its graphs and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from monosema.evaluation.report import Report
from monosema.evaluation.saebench_layout import envelope

_Figures = dict[str, float | int | None]


def core_layout(
    report: Report, *, name: str = "", coder_config: Mapping[str, Any] | None = None, dataset: str = "data"
) -> dict[str, Any]:
    """``report`` as JSON values of SAEBench's layout, with every key it has; -1 is what was not measured.

    The numbers are ours; where SAEBench's differ, and why, is in ``docs/metrics.md``, and ``metrics.published`` has
    those. Ablation is by zero there; where the report has none, its figures are -1. The whole report is in
    ``eval_result_unstructured``, with its intervals.

    Args:
        report: of one dictionary at one site of one model. With ``evaluate``'s table of latents, each has a record in
            ``eval_result_details``; one that was read from a file has none.
        name: the dictionary's name, as graphs show it.
        coder_config: the dictionary's config, as JSON values.
        dataset: what the text is called.
    """
    metrics: dict[str, _Figures] = {
        **_losses(report),
        "reconstruction_quality": {
            "explained_variance": report.fve,
            "explained_variance_legacy": report.fve_per_token_mean,
            "mse": report.mse,
            "cossim": report.cosine,
        },
        "shrinkage": {
            "l2_norm_in": report.norm_in,
            "l2_norm_out": report.norm_out,
            "l2_ratio": report.norm_ratio,
            "relative_reconstruction_bias": report.relative_reconstruction_bias,
        },
        "sparsity": {"l0": report.l0, "l1": report.l1},
        "token_stats": {
            "total_tokens_eval_reconstruction": report.n_predicted_tokens,
            "total_tokens_eval_sparsity_variance": report.n_tokens,
        },
        "misc_metrics": {
            "freq_over_1_percent": report.share_over_1_percent,
            "freq_over_10_percent": report.share_over_10_percent,
            "normalized_freq_over_1_percent": _share_of_firings(report.firing_density, 0.01),
            "normalized_freq_over_10_percent": _share_of_firings(report.firing_density, 0.1),
            "average_max_encoder_cosine_sim": report.max_encoder_cosine,
            "average_max_decoder_cosine_sim": report.max_decoder_cosine,
            "frac_alive": report.n_alive / report.d_sae,
        },
    }
    return envelope(
        "core",
        metrics,
        config={
            "model_name": report.model_name or "",
            "dataset": dataset,
            "compute_kl": report.kl is not None,
            "compute_ce_loss": report.ce_clean is not None,
            "compute_l2_norms": True,
            "compute_sparsity_metrics": True,
            "compute_variance_metrics": True,
            "compute_featurewise_density_statistics": report.latents is not None,
            "compute_featurewise_weight_based_metrics": report.latents is not None,
            "exclude_special_tokens_from_reconstruction": True,
        },
        details=_latents(report),
        coder_config=coder_config,
        name=name,
        unstructured=report.to_dict(),
    )


def _losses(report: Report) -> dict[str, _Figures]:
    zero = (report.ablations or {}).get("zero")
    ablated: _Figures = {} if zero is None else asdict(zero)
    return {
        "model_behavior_preservation": {
            "kl_div_score": ablated.get("kl_score"),
            "kl_div_with_ablation": ablated.get("kl"),
            "kl_div_with_sae": report.kl,
        },
        "model_performance_preservation": {
            "ce_loss_score": ablated.get("ce_loss_score"),
            "ce_loss_with_ablation": ablated.get("ce"),
            "ce_loss_with_sae": report.ce_spliced,
            "ce_loss_without_sae": report.ce_clean,
        },
    }


def _share_of_firings(density: Tensor | None, above: float) -> float | None:
    """The share of all firings that are of latents firing on more than ``above`` of the tokens."""
    return None if density is None else float(density[density > above].sum() / density.sum())


def _latents(report: Report) -> list[dict[str, float | int | None]]:
    if report.latents is None:
        return []
    columns = report.latents.columns()
    names = {
        "feature_density": "density",
        "consistent_activation_heuristic": "consistent_activation",
        "encoder_bias": "encoder_bias",
        "encoder_norm": "encoder_norm",
        "encoder_decoder_cosine_sim": "encoder_decoder_cosine",
        "max_decoder_cosine_sim": "max_decoder_cosine",
        "max_encoder_cosine_sim": "max_encoder_cosine",
    }
    return [
        {"index": index, **{theirs: columns[ours][index] for theirs, ours in names.items()}}
        for index in range(report.d_sae)
    ]
