"""A report as SAEBench's ``core`` writes one: its keys, our numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from evaluation_tiny import WIDTH, random_sae, tiny_contexts
from torch import Tensor

from monosema.evaluation import Report, evaluate
from monosema.evaluation.saebench import core_layout
from monosema.models import LanguageModel

KEYS = {
    "model_behavior_preservation": {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"},
    "model_performance_preservation": {
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
    },
    "reconstruction_quality": {"explained_variance", "explained_variance_legacy", "mse", "cossim"},
    "shrinkage": {"l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"},
    "sparsity": {"l0", "l1"},
    "token_stats": {"total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"},
    "misc_metrics": {
        "freq_over_1_percent",
        "freq_over_10_percent",
        "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent",
        "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim",
        "frac_alive",
    },
}
DETAILS = {
    "index",
    "feature_density",
    "consistent_activation_heuristic",
    "encoder_bias",
    "encoder_norm",
    "encoder_decoder_cosine_sim",
    "max_decoder_cosine_sim",
    "max_encoder_cosine_sim",
}


def flat(layout: dict[str, Any]) -> dict[str, float]:
    return {name: value for group in layout["eval_result_metrics"].values() for name, value in group.items()}


@pytest.fixture(scope="module")
def report(decoder: LanguageModel) -> Report:
    return evaluate(random_sae(), decoder, tiny_contexts(decoder), n_tokens=None, progress=False)


def test_it_has_the_keys_of_saebench(report: Report) -> None:
    layout = core_layout(report, name="mine", coder_config={"d_in": WIDTH}, dataset="text")
    assert {group: set(values) for group, values in layout["eval_result_metrics"].items()} == KEYS
    assert [set(each) for each in layout["eval_result_details"]] == [DETAILS] * report.d_sae
    assert (layout["eval_type_id"], layout["sae_lens_id"], layout["sae_cfg_dict"]) == ("core", "mine", {"d_in": WIDTH})
    assert (layout["eval_config"]["dataset"], layout["eval_config"]["model_name"]) == ("text", "tiny-llama")
    assert json.loads(json.dumps(layout, allow_nan=False)) == layout
    assert layout["eval_result_unstructured"]["fve"] == report.fve


def test_its_numbers_are_ours(report: Report) -> None:
    values = flat(core_layout(report))
    assert report.ablations is not None
    zero = report.ablations["zero"]
    expected = {
        "kl_div_score": zero.kl_score,
        "kl_div_with_ablation": zero.kl,
        "kl_div_with_sae": report.kl,
        "ce_loss_score": zero.ce_loss_score,
        "ce_loss_with_ablation": zero.ce,
        "ce_loss_with_sae": report.ce_spliced,
        "ce_loss_without_sae": report.ce_clean,
        "explained_variance": report.fve,
        "mse": report.mse,
        "cossim": report.cosine,
        "l2_ratio": report.norm_ratio,
        "relative_reconstruction_bias": report.relative_reconstruction_bias,
        "l0": report.l0,
        "l1": report.l1,
        "total_tokens_eval_reconstruction": report.n_predicted_tokens,
        "total_tokens_eval_sparsity_variance": report.n_tokens,
        "freq_over_1_percent": report.share_over_1_percent,
        "freq_over_10_percent": report.share_over_10_percent,
        "average_max_encoder_cosine_sim": report.max_encoder_cosine,
        "average_max_decoder_cosine_sim": report.max_decoder_cosine,
        "frac_alive": report.n_alive / report.d_sae,
        "explained_variance_legacy": report.fve_per_token_mean,
        "l2_norm_in": report.norm_in,
        "l2_norm_out": report.norm_out,
    }
    assert {name: values[name] for name in expected} == expected
    assert {name for name, value in values.items() if value == -1} == set(values) - set(expected) - {
        "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent",
    }


def test_the_share_of_firings_by_hand() -> None:
    """One latent fires on half of the tokens, one on a twentieth, one never: 0.5 of 0.55 are above a tenth."""
    coder = random_sae()
    x = torch.zeros(20, WIDTH, dtype=torch.float64)
    x[:10, 0], x[0, 1] = 1.0, 1.0
    with torch.no_grad():
        coder.W_enc_rows.zero_()
        coder.W_enc_rows[0, 0] = coder.W_enc_rows[1, 1] = 1.0
    values = flat(core_layout(evaluate(coder, activations=x, progress=False)))
    assert values["normalized_freq_over_10_percent"] == pytest.approx(0.5 / 0.55)
    assert values["normalized_freq_over_1_percent"] == 1
    assert values["frac_alive"] == 2 / coder.d_sae


def test_each_latent_has_a_record(report: Report) -> None:
    details = core_layout(report)["eval_result_details"]
    assert report.latents is not None
    assert [each["index"] for each in details] == list(range(report.d_sae))
    for theirs, ours in (("feature_density", report.latents.density), ("encoder_norm", report.latents.encoder_norm)):
        torch.testing.assert_close(torch.tensor([each[theirs] for each in details]).double(), ours, check_dtype=False)


def test_what_was_not_measured_is_minus_one(decoder: LanguageModel, contexts: Tensor, report: Report) -> None:
    mean = evaluate(random_sae(), decoder, contexts, n_tokens=None, ablation="mean", progress=False)
    values = flat(core_layout(mean))
    assert (values["ce_loss_score"], values["ce_loss_with_ablation"], values["kl_div_score"]) == (-1, -1, -1)
    assert values["ce_loss_with_sae"] == mean.ce_spliced
    read = core_layout(Report.from_dict(report.to_dict()))
    assert (read["eval_result_details"], flat(read)["normalized_freq_over_1_percent"]) == ([], -1)
    assert flat(read)["ce_loss_score"] == flat(core_layout(report))["ce_loss_score"]
