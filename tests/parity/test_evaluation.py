"""One dictionary, one model, one text: SAEBench 0.6.0, sae-lens 6.54.12 and ``evaluate``; every difference explained.

A figure that is right there equals ours. One that is not equals what its definition there gives, worked out here from
our own model and coder, and differs from ours: a peer that mends it is seen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_case import ACTIVATIONS, BATCH, BOS, CONTEXT, D_SAE, N_CONTEXTS, Problem, flat, make_problems
from peer import Peer
from safetensors.torch import save_file

from monosema.core.files import write_json
from monosema.evaluation import core_layout
from monosema.hub import save
from monosema.metrics import (
    PublishedSums,
    encoder_decoder_cosine,
    encoder_norms,
    fve,
    max_cosine_to_others,
    relative_reconstruction_bias,
    token_cross_entropy,
    token_kl,
)

CLOSE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Problem]:
    return make_problems(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def separated(problems: Mapping[str, Problem], tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """BOS between documents as well, at other places in each context: batches differ in size."""
    one, folder = problems["BatchTopK"], tmp_path_factory.mktemp("separated")
    contexts = one.contexts.clone()
    for number in range(N_CONTEXTS):
        contexts[number, 2 + number % 5 :: 3 + number % 4] = BOS
    for name in ("model", "coder"):
        (folder / name).symlink_to(one.folder / name)
    save_file({"tokens": contexts}, folder / "tokens")
    return Problem(folder, one.model, one.coder, contexts)


def test_versions(saebench: Peer):
    assert saebench.call("version") == {"sae_bench": "0.6.0", "sae_lens": "6.54.12"}


# -- what is right there


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_saelens_agrees(saebench: Peer, problems: Mapping[str, Problem], name: str):
    problem = problems[name]
    report, theirs = problem.report, problem.saelens(saebench)
    expected = {
        "explained_variance": report.fve,
        "mse": report.mse,
        "cossim": report.cosine,
        "l2_ratio": report.norm_ratio,
        "l0": report.l0,
        "l1": report.l1,
        "ce_loss_without_sae": report.ce_clean,
        "ce_loss_with_sae": report.ce_spliced,
        "feature_density": report.firing_density,
        "encoder_norm": encoder_norms(problem.coder.W_enc),
        "encoder_decoder_cosine_sim": encoder_decoder_cosine(problem.coder.W_enc, problem.coder.W_dec),
    }
    assert_agree(theirs, expected)
    assert 2 < report.l0 < 20
    assert 0.3 < report.fve < 0.99


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_saebench_agrees(saebench: Peer, problems: Mapping[str, Problem], name: str):
    problem = problems[name]
    report, coder, theirs = problem.report, problem.coder, problem.saebench(saebench)
    bias = coder.b_enc if coder.b_enc is not None else coder.activation.get_parameter("b_mag")
    expected = {
        "cossim": report.cosine,
        "l2_ratio": report.norm_ratio,
        "l0": report.l0,
        "ce_loss_without_sae": report.ce_clean,
        "ce_loss_with_sae": report.ce_spliced,
        "encoder_bias": bias,
        "encoder_norm": encoder_norms(coder.W_enc),
        "encoder_decoder_cosine_sim": encoder_decoder_cosine(coder.W_enc, coder.W_dec),
        "max_encoder_cosine_sim": max_cosine_to_others(coder.W_enc.T),
        "max_decoder_cosine_sim": max_cosine_to_others(coder.W_dec),
    }
    if name != "AbsTopK":
        expected |= {"l1": report.l1, "feature_density": report.firing_density, "frac_alive": report.n_alive / D_SAE}
    assert_agree(theirs, expected)


def test_what_the_adapter_computes_there_is_what_the_coder_computes_here(
    saebench: Peer, problems: Mapping[str, Problem]
):
    """A threshold that decides nothing alike would show in L0, exactly."""
    for problem in problems.values():
        assert problem.saelens(saebench)["l0"] == pytest.approx(problem.report.l0, rel=1e-6)


# -- what is not: both


def test_ablation_destroys_bos_there(saebench: Peer, problems: Mapping[str, Problem]):
    """Special positions are restored in the spliced run and zeroed in the ablated one: the score is of both."""
    problem = problems["BatchTopK"]
    report = problem.report
    zeroed = problem.cross_entropy(problem.log_probs(torch.zeros_like(problem.site)))
    kept = torch.where(problem.special.unsqueeze(-1), problem.site, 0.0)
    assert report.ce_ablated == pytest.approx(problem.cross_entropy(problem.log_probs(kept)), rel=CLOSE)
    for theirs in (problem.saelens(saebench), problem.saebench(saebench)):
        assert theirs["ce_loss_with_ablation"] == pytest.approx(zeroed, rel=CLOSE)
        assert theirs["ce_loss_score"] == pytest.approx(
            (zeroed - theirs["ce_loss_with_sae"]) / (zeroed - theirs["ce_loss_without_sae"]), rel=CLOSE
        )
        assert abs(theirs["ce_loss_score"] - report.ce_loss_score) > 10 * CLOSE


def test_divergence_counts_the_last_position_there(saebench: Peer, problems: Mapping[str, Problem]):
    """It has no target, so cross-entropy leaves it out, there and here; ours compares both at the same positions."""
    problem = problems["BatchTopK"]
    spliced, ablated = problem.log_probs(problem.restored), problem.log_probs(torch.zeros_like(problem.site))
    ours = token_kl(problem.log_probs(), spliced)[:, 1:-1].mean()
    assert problem.report.kl == pytest.approx(float(ours), rel=CLOSE)
    for theirs in (problem.saelens(saebench), problem.saebench(saebench)):
        assert theirs["kl_div_with_sae"] == pytest.approx(problem.kl(spliced), rel=CLOSE)
        assert theirs["kl_div_with_ablation"] == pytest.approx(problem.kl(ablated), rel=CLOSE)
        assert abs(theirs["kl_div_with_sae"] / problem.report.kl - 1) > 10 * CLOSE


def test_a_target_that_is_special_counts_there(saebench: Peer, separated: Problem):
    """The mask of the inputs is laid on the losses, so where a document ends its prediction of BOS is measured."""
    expected = (
        separated.cross_entropy(separated.log_probs()),
        separated.cross_entropy(separated.log_probs(separated.restored)),
    )
    for theirs in (separated.saelens(saebench), separated.saebench(saebench)):
        assert (theirs["ce_loss_without_sae"], theirs["ce_loss_with_sae"]) == pytest.approx(expected, rel=CLOSE)
    assert abs(separated.report.ce_clean / expected[0] - 1) > 10 * CLOSE


def test_ratios_are_means_over_batches_there(saebench: Peer, problems: Mapping[str, Problem]):
    problem = problems["BatchTopK"]
    split = [rows.split(BATCH * (CONTEXT - 1)) for rows in problem.rows]
    mean = sum(map(relative_reconstruction_bias, *split)) / (N_CONTEXTS / BATCH)
    legacy = problem.published().explained_variance_legacy
    for run in (problem.saelens, problem.saebench):
        theirs, at_once = run(saebench), run(saebench, batch=N_CONTEXTS)
        assert theirs["relative_reconstruction_bias"] == pytest.approx(mean, rel=1e-5)
        assert at_once["relative_reconstruction_bias"] == pytest.approx(
            problem.report.relative_reconstruction_bias, rel=1e-5
        )
        assert theirs["explained_variance_legacy"] == pytest.approx(legacy, abs=CLOSE)
        one_batch = problem.published(N_CONTEXTS).explained_variance_legacy
        assert at_once["explained_variance_legacy"] == pytest.approx(one_batch, abs=CLOSE)
    assert abs(legacy - problem.report.fve) > 10 * CLOSE


def test_a_token_reconstructed_as_zero_has_no_cosine_there(
    saebench: Peer, problems: Mapping[str, Problem], tmp_path: Path
):
    """0/0, and with it the mean over all tokens; SAEBench writes -1. It counts as 0 here."""
    problem = problems["BatchTopK"]
    silent = copy.deepcopy(problem.coder)
    assert silent.b_dec is not None
    silent.b_dec.zero_()
    largest = silent.pre_activations(problem.rows[0]).amax(1).sort().values
    silent.activation.set_threshold(float(largest[len(largest) // 2 :][:2].mean()))  # type: ignore[operator]
    save(silent, tmp_path / "coder")
    for name in ("model", "tokens"):
        (tmp_path / name).symlink_to(problem.folder / name)
    other = Problem(tmp_path, problem.model, silent, problem.contexts)
    assert math.isnan(other.saelens(saebench)["cossim"])
    assert other.saebench(saebench)["cossim"] == -1
    assert 0 < other.report.cosine < 1


def test_tokens_are_counted_with_the_special_ones_there(saebench: Peer, problems: Mapping[str, Problem]):
    problem = problems["BatchTopK"]
    for theirs in (problem.saelens(saebench), problem.saebench(saebench)):
        assert theirs["total_tokens_eval_sparsity_variance"] == N_CONTEXTS * CONTEXT
    assert problem.report.n_tokens == N_CONTEXTS * (CONTEXT - 1)


def test_the_second_part_reads_on_there(saebench: Peer, problems: Mapping[str, Problem]):
    """The text is rewound in between, but not what reads it: losses and reconstruction are of different contexts."""
    problem, half = problems["BatchTopK"], N_CONTEXTS // 2
    of_latents = (problem.latents[half:] != 0).sum(-1)[~problem.special[half:]].double().mean()
    losses = token_cross_entropy(problem.log_probs()[:half, :-1], problem.contexts[:half, 1:])
    for run in (problem.saelens, problem.saebench):
        theirs = run(saebench, batch=half, n_batches=1)
        assert theirs["l0"] == pytest.approx(float(of_latents), rel=CLOSE)
        assert theirs["ce_loss_without_sae"] == pytest.approx(float(losses[:, 1:].mean()), rel=CLOSE)


# -- what is not: SAEBench


def test_saebench_explains_another_variance(saebench: Peer, problems: Mapping[str, Problem], separated: Problem):
    for problem in (problems["BatchTopK"], separated):
        theirs = problem.saebench(saebench)["explained_variance"]
        assert theirs == pytest.approx(problem.published().explained_variance_saebench_0_6, abs=CLOSE)
        assert abs(theirs - problem.report.fve) > 10 * CLOSE


def test_saebench_divides_the_squared_error_twice(saebench: Peer, problems: Mapping[str, Problem], separated: Problem):
    one, n = problems["BatchTopK"], BATCH * (CONTEXT - 1)
    assert one.saebench(saebench)["mse"] * n == pytest.approx(one.report.mse, rel=CLOSE)
    for problem in (one, separated):
        assert problem.saebench(saebench)["mse"] == pytest.approx(problem.published().mse_saebench_0_6, rel=CLOSE)


def test_saebench_splices_bos_by_default(saebench: Peer, problems: Mapping[str, Problem]):
    """Its option is off in the dataclass, on in its scripts."""
    problem = problems["BatchTopK"]
    theirs = problem.saebench(saebench, restore_special=False)
    spliced = problem.cross_entropy(problem.log_probs(problem.reconstruction))
    assert theirs["ce_loss_with_sae"] == pytest.approx(spliced, rel=CLOSE)
    assert abs(spliced / problem.report.ce_spliced - 1) > 10 * CLOSE


def test_saebench_sums_signed_latents_and_sees_no_negative_one(saebench: Peer, problems: Mapping[str, Problem]):
    problem = problems["AbsTopK"]
    theirs, latents = problem.saebench(saebench), problem.latents[~problem.special]
    assert theirs["l1"] == pytest.approx(float(latents.sum(1).mean()), rel=CLOSE)
    assert abs(theirs["l1"]) < 0.9 * problem.report.l1
    positive = (latents > 0).double().mean(0)
    assert_agree(theirs, {"feature_density": positive, "frac_alive": float((positive > 0).double().mean())})
    assert float(positive.sum()) < 0.9 * float(problem.report.firing_density.sum())


def test_saebench_reads_our_layout(saebench: Peer, problems: Mapping[str, Problem], tmp_path: Path):
    """Its own classes take it, and what they hold is where its own evaluation puts it."""
    problem = problems["BatchTopK"]
    layout = core_layout(problem.report, name="ours")
    write_json(tmp_path / "core.json", layout)
    read = saebench.call("read_core", file=str(tmp_path / "core.json"))
    assert flat(read["eval_result_metrics"]) == flat(layout["eval_result_metrics"])
    assert read["eval_result_details"] == layout["eval_result_details"]
    theirs, features = problem.saebench(saebench), ("feature_density", "consistent_activation_heuristic")
    for name in ("l0", "frac_alive", "normalized_freq_over_1_percent", "normalized_freq_over_10_percent"):
        assert flat(read["eval_result_metrics"])[name] == pytest.approx(theirs[name], rel=CLOSE)
    assert_agree(theirs, {name: [each[name] for each in read["eval_result_details"]] for name in features})


# -- dictionary_learning


@pytest.mark.parametrize("batch_tokens", [52, 156])
def test_dictionary_learning(
    dictionary_learning: Peer, problems: Mapping[str, Problem], tmp_path: Path, batch_tokens: int
):
    """Its figures of the same rows, reconstructions offset by two, which it does not see."""
    problem = problems["BatchTopK"]
    x, x_hat = problem.rows
    x_hat = x_hat + 2
    save_file({"x": x, "x_hat": x_hat, "latents": problem.latents[~problem.special]}, tmp_path / "given")
    theirs = dictionary_learning.call("figures", given=str(tmp_path / "given"), batch_tokens=batch_tokens)
    sums = PublishedSums.over(x, x_hat, batch_tokens)
    expected = {
        "l2_loss": sums.l2_loss_dictionary_learning,
        "frac_variance_explained": sums.frac_variance_explained_dictionary_learning,
        "l0": problem.report.l0,
        "l1_loss": problem.report.l1,
    }
    assert_agree(theirs, expected)
    assert sums.frac_variance_explained_dictionary_learning > fve(x, x_hat) + 0.1


def assert_agree(theirs: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        values = torch.as_tensor(value).detach().double()
        found = torch.as_tensor(theirs[name], dtype=torch.float64)
        torch.testing.assert_close(found, values, rtol=CLOSE, atol=CLOSE, msg=lambda text, name=name: f"{name}: {text}")
