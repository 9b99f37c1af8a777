"""Evaluation without rows of outlying norm, whose figures stand beside those of all rows."""

from __future__ import annotations

import pytest
import torch
from evaluation_tiny import BOS, SITE, WIDTH, constant_sae, random_sae, tiny_contexts, tiny_decoder

from monosema.coders import SAE, ReLU
from monosema.core.errors import ConfigError
from monosema.evaluation import evaluate, evaluate_crosscoder, evaluate_many
from monosema.metrics import fve

LOUD = 7


def test_fve_of_ordinary_rows_and_of_all_by_hand():
    # reconstructions are 0 but for the bias 1; norms 1, 3, 1, 3, 200; the lower median is 3, the limit 30
    coder = SAE(1, 2, activation=ReLU(), b_dec="output", dtype="float64")
    with torch.no_grad():
        coder.W_dec.zero_()
        coder.b_dec.fill_(1.0)
    coder.bind("a", "a", {})
    x = torch.tensor([[1.0], [3.0], [1.0], [3.0], [200.0]], dtype=torch.float64)
    report = evaluate(coder, activations=x)
    # ordinary: squared errors 0, 4, 0, 4 about the mean 2: 1 - 8 / 4; all: mean 41.6, 1 - (8 + 199²) / Σ(x - 41.6)²
    assert report.fve == pytest.approx(-1)
    assert report.fve_all_rows == pytest.approx(1 - (8 + 199**2) / (2 * 40.6**2 + 2 * 38.6**2 + 158.4**2))
    assert (report.n_tokens, report.n_outlier_rows, report.outlier_norm_multiple) == (4, 1, 10)
    assert report.mse == pytest.approx(2)
    assert any(note.startswith("1 of 5 rows (20.00%)") and "records no median" in note for note in report.notes)
    everything = evaluate(coder, activations=x, outlier_norm_multiple=None)
    assert everything.fve == pytest.approx(report.fve_all_rows)
    assert (everything.n_tokens, everything.n_outlier_rows, everything.fve_all_rows) == (5, None, None)
    coder.bind("a", "a", {"outlier_norm_multiple": 10.0, "median_norms": [["a", 1, 0.2]]})
    assert evaluate(coder, activations=x).n_outlier_rows == 3  # the recorded median decides: 3 > 10 * 0.2
    coder.bind("a", "a", {"outlier_norm_multiple": None, "median_norms": None})
    assert evaluate(coder, activations=x).n_tokens == 5  # trained on all rows, evaluated on all
    with pytest.raises(ConfigError, match="outlier_norm_multiple must be at least 1"):
        evaluate(coder, activations=x, outlier_norm_multiple=0.1)


def test_rows_that_overflow_the_reconstruction_are_counted_and_leave_the_rest_as_it_is():
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))
    coder = random_sae(dtype="float32")
    before = evaluate(coder, activations=x)
    after = evaluate(coder, activations=torch.cat([x, torch.full((1, WIDTH), 3e38)]))
    assert after.n_outlier_rows == 1 and after.fve == before.fve and after.mse == before.mse


@pytest.mark.parametrize("size", [3, 17, 50])
def test_batches_of_any_size_leave_out_the_same(size):
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[[4, 30, 49]] *= 100
    report = evaluate(random_sae(), activations=x, batch_size=size)
    assert report.n_outlier_rows == 3
    assert report.fve == pytest.approx(evaluate(random_sae(), activations=x, batch_size=50).fve, rel=1e-12)


def loud_decoder():
    model = tiny_decoder()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[LOUD] *= 1000
    return model


@pytest.fixture(scope="module")
def loud():
    model = loud_decoder()
    contexts = tiny_contexts(model)
    contexts[:, 3] = LOUD
    return model, contexts


def test_in_text_they_are_in_no_figure_of_activations_and_keep_their_value_in_every_run(loud):
    model, contexts = loud
    coder = random_sae()
    report = evaluate(coder, model, contexts)
    x = model.capture(contexts, [SITE])[SITE]
    usable, is_loud = contexts != BOS, contexts == LOUD
    assert report.n_outlier_rows == int(is_loud.sum()) > 0
    ordinary = x[usable & ~is_loud]
    assert report.n_tokens == len(ordinary)
    with torch.no_grad():
        assert report.fve == pytest.approx(fve(ordinary, coder(ordinary)), rel=1e-9)
        assert report.fve_all_rows == pytest.approx(fve(x[usable], coder(x[usable])), rel=1e-9)
        # the spliced run by hand: the reconstruction everywhere but at special and loud positions
        new = torch.where((usable & ~is_loud).unsqueeze(-1), coder(x), x)
        with model.edits({SITE: lambda _: new}):
            logits = model(contexts)
        mean = ordinary.mean(0)
        with model.edits({SITE: lambda _: torch.where((usable & ~is_loud).unsqueeze(-1), mean, x)}):
            ablated = model(contexts)
    counted = usable[:, :-1] & usable[:, 1:]
    of = [
        torch.nn.functional.cross_entropy(each[:, :-1][counted], contexts[:, 1:][counted]).item()
        for each in (logits, ablated)
    ]
    assert report.ce_spliced == pytest.approx(of[0], rel=1e-9)
    assert report.ablations is not None and report.ablations["mean"].ce == pytest.approx(of[1], rel=1e-9)
    assert report.n_predicted_tokens == int(counted.sum())


def test_dictionaries_with_other_rules_have_the_figures_they_have_alone(loud):
    model, contexts = loud
    strict = constant_sae(0.5)
    norms = model.capture(contexts, [SITE])[SITE][contexts != BOS].norm(dim=1)
    strict.metadata.update({"outlier_norm_multiple": 1.0, "median_norms": [[SITE, WIDTH, float(norms.median())]]})
    off = random_sae()
    off.metadata.update({"outlier_norm_multiple": None, "median_norms": None})
    coders = {"default": random_sae(), "strict": strict, "off": off}
    reports = evaluate_many(coders, model, contexts, batch_size=4)
    counts = []
    for name, coder in coders.items():
        assert reports[name].to_dict() == evaluate(coder, model, contexts, batch_size=4).to_dict()
        counts.append(reports[name].n_outlier_rows)
    assert counts[2] is None and 0 < counts[0] < counts[1]


def test_a_crosscoder_is_compared_on_ordinary_rows():
    from monosema.coders import Crosscoder

    coder = Crosscoder((4, 4), 8, activation=ReLU(), dtype="float64")
    coder.bind("a+b", "a+b", {})
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    louder = torch.cat([x, 500 * x[:2]])
    alone, report = (evaluate_crosscoder(coder, activations=each) for each in (x, louder))
    assert (alone.n_outlier_rows, report.n_outlier_rows, report.n_tokens) == (0, 2, 60)
    assert torch.equal(alone.latents.beta_error.nan_to_num(), report.latents.beta_error.nan_to_num())
