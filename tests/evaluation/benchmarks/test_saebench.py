"""SAEBench's layout: every key, one level below its category, and -1 for what was not measured."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest
from report_cases import REPORTS

from monosema.core.errors import ConfigError
from monosema.evaluation.benchmarks import AbsorptionReport, PerturbationReport, RavelReport, to_saebench

ABLATED, PROBED = (2, 5, 10, 20, 50, 100, 500), (1, 2, 5, 10, 20, 50, 100)
LAYOUT = {
    "absorption": (
        "absorption_first_letter",
        {
            "mean": {
                f"{kind}_{figure}"
                for kind in ("mean", "std_dev")
                for figure in ("absorption_fraction_score", "full_absorption_score", "num_split_features")
            }
        },
        {
            "first_letter", "mean_absorption_fraction", "full_absorption_rate", "num_full_absorption",
            "num_probe_true_positives", "num_split_features",
        },
    ),
    "probe": (
        "sparse_probing",
        {of: {f"{of}_test_accuracy", *(f"{of}_top_{k}_test_accuracy" for k in PROBED)} for of in ("llm", "sae")},
        {
            "dataset_name",
            *(f"{of}_test_accuracy" for of in ("llm", "sae")),
            *(f"{of}_top_{k}_test_accuracy" for of in ("llm", "sae") for k in PROBED),
        },
    ),
    "tpp": (
        "tpp",
        {
            "tpp_metrics": {
                f"tpp_threshold_{n}_{figure}"
                for n in ABLATED
                for figure in ("total_metric", "intended_diff_only", "unintended_diff_only")
            }
        },
        None,
    ),
    "scr": (
        "scr",
        {"scr_metrics": {f"scr_{of}_threshold_{n}" for n in ABLATED for of in ("dir1", "metric", "dir2")}},
        None,
    ),
    "ravel": ("ravel", {"ravel": {"disentanglement_score", "cause_score", "isolation_score"}}, set()),
    "meta": (
        "meta_structure_decoder_variance",
        {"meta_structure": {"decoder_fraction_variance_explained", "train_time_seconds", "final_reconstruction_mse"}},
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUT)
def test_every_key_is_there_one_level_below_its_category(name: str) -> None:
    eval_type, categories, details = LAYOUT[name]
    written = to_saebench(REPORTS[name], name="mine", coder_config={"d_in": 4}, dataset="letters")
    json.dumps(written, allow_nan=False)
    assert written["eval_type_id"] == eval_type
    assert {category: set(values) for category, values in written["eval_result_metrics"].items()} == categories
    for values in written["eval_result_metrics"].values():
        assert all(type(value) in (int, float) for value in values.values())
    wanted = {"dataset_name", *next(iter(categories.values()))} if details is None else details
    assert bool(written["eval_result_details"]) == bool(wanted)
    for detail in written["eval_result_details"]:
        assert set(detail) == wanted
        assert all(type(value) in (int, float, str) for value in detail.values())
    assert written["sae_cfg_dict"] == {"d_in": 4} and written["sae_lens_id"] == "mine"
    assert written["eval_result_unstructured"]["benchmark"] == name


def test_figures_are_under_their_keys() -> None:
    tpp = REPORTS["tpp"]
    assert isinstance(tpp, PerturbationReport)
    metrics = to_saebench(tpp)["eval_result_metrics"]["tpp_metrics"]
    assert metrics["tpp_threshold_2_total_metric"] == tpp.scores[1].score.value
    assert metrics["tpp_threshold_2_unintended_diff_only"] == tpp.scores[1].unintended.value
    assert metrics["tpp_threshold_5_total_metric"] == -1  # 3 were measured, which the layout has no key for
    probe = to_saebench(REPORTS["probe"], dataset="code")
    assert probe["eval_result_metrics"]["sae"]["sae_top_1_test_accuracy"] == 0.7
    assert probe["eval_result_metrics"]["sae"]["sae_test_accuracy"] == -1
    assert probe["eval_result_metrics"]["llm"]["llm_test_accuracy"] == 0.9
    assert probe["eval_result_details"][0]["dataset_name"] == "code: comment"
    assert to_saebench(REPORTS["ravel"])["eval_result_metrics"]["ravel"] == {
        "disentanglement_score": 0.625,
        "cause_score": 0.5,
        "isolation_score": 0.75,
    }


def test_absorption_is_averaged_over_parents_and_details_are_letters() -> None:
    report = REPORTS["absorption"]
    assert isinstance(report, AbsorptionReport)
    written = to_saebench(report)
    fractions = [each.fraction.value for each in report.parents]
    assert len(fractions) == 2
    mean = written["eval_result_metrics"]["mean"]
    assert mean["mean_absorption_fraction_score"] == pytest.approx(statistics.fmean(fractions))
    assert mean["mean_num_split_features"] == report.mean_n_main_latents
    assert mean["mean_full_absorption_score"] == pytest.approx(report.mean_full.value)
    assert mean["std_dev_num_split_features"] == pytest.approx(
        statistics.stdev(len(each.main_latents) for each in report.parents)
    )
    assert [each["first_letter"] for each in written["eval_result_details"]] == ["a"]
    one = to_saebench(replace(report, parents=report.parents[:1]))["eval_result_metrics"]["mean"]
    assert one["std_dev_full_absorption_score"] == -1


def test_without_a_mask_the_largest_choice_is_written() -> None:
    report = REPORTS["ravel"]
    assert isinstance(report, RavelReport)
    tops = tuple(each for each in report.scores if each.choice == "top 5")
    metrics = to_saebench(replace(report, scores=tops, disentangle={"top 5": 0.5}))["eval_result_metrics"]["ravel"]
    assert metrics["disentanglement_score"] == 0.5
    undefined = replace(report, disentangle={"mask": float("nan")})
    assert to_saebench(undefined)["eval_result_metrics"]["ravel"]["disentanglement_score"] == -1


def test_a_benchmark_without_a_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layout for the benchmark 'truth'"):
        to_saebench(REPORTS["truth"])
