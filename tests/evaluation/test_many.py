"""``evaluate_many``: each report is what the dictionary has alone, and the model runs no more than it must."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from evaluation_tiny import (
    BOS,
    SITE,
    WIDTH,
    constant_sae,
    identity_sae,
    random_sae,
    random_transcoder,
    runs_of_blocks,
    tiny_decoder,
)
from torch import Tensor

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.evaluation import evaluate, evaluate_many
from monosema.evaluation.report import plain_value
from monosema.models import LanguageModel

LATER = "blocks.2.hook_resid_pre"


def dictionaries() -> dict:
    return {
        "random": random_sae(),
        "exact": identity_sae(),
        "later": random_sae(LATER),
        "transcoder": random_transcoder(),
        "read-only": random_transcoder(read="blocks.1.ln2.hook_normalized"),
        "constant": constant_sae(0.3),
    }


def plain(report) -> dict:
    values = {name: plain_value(value) for name, value in report.to_dict(per_latent=True).items()}
    return {name: value for name, value in values.items() if name != "version"}


@pytest.mark.parametrize("options", [{}, {"ablation": "mean"}, {"n_loss_tokens": 20}, {"losses": False}])
def test_every_report_is_that_of_the_dictionary_alone(decoder: LanguageModel, contexts: Tensor, options: dict):
    reports = evaluate_many(dictionaries(), decoder, contexts, batch_size=2, **options)
    for name, coder in dictionaries().items():
        assert plain(reports[name]) == plain(evaluate(coder, decoder, contexts, batch_size=2, **options)), name


def test_rows_alone_and_together_give_the_same():
    rows = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coders = {"random": random_sae(), "exact": identity_sae()}
    reports = evaluate_many(coders, activations=rows, batch_size=7)
    for name, coder in coders.items():
        assert plain(reports[name]) == plain(evaluate(coder, activations=rows, batch_size=7))


def test_at_most_n_batches_of_an_iterable_are_read():
    parts = torch.randn(6, 10, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert evaluate(random_sae(), activations=iter(parts), n_batches=4).n_tokens == 40


@pytest.mark.parametrize("n", [1, 5])
def test_a_batch_costs_a_forward_pass_and_a_suffix_for_each_edited_run(contexts: Tensor, n: int):
    model = tiny_decoder()
    coders = {str(i): random_sae(LATER) for i in range(n)}
    totals = []
    for n_contexts in (2, 2, 6):  # the first also learns the shape of where runs begin
        counts = runs_of_blocks(model)
        evaluate_many(coders, model, contexts[:n_contexts], batch_size=2, outlier_norm_multiple=None)
        totals.append(counts.copy())
    per_batch = [(three - one) / 2 for one, three in zip(*totals[1:], strict=True)]
    assert per_batch == [1, 1, 3 + n, 3 + n]  # blocks 0 and 1, block 2, unembedding: clean, two ablations, n splices


def test_without_room_to_keep_where_runs_begin_the_figures_are_the_same(
    decoder: LanguageModel, contexts: Tensor, monkeypatch: pytest.MonkeyPatch
):
    kept = evaluate(random_sae(), decoder, contexts, batch_size=2)
    monkeypatch.setattr("monosema.evaluation.runs.KEPT_BYTES", 1)
    assert plain(evaluate(random_sae(), decoder, contexts, batch_size=2)) == plain(kept)


def test_documents_kept_apart_resume_with_their_own_mask(contexts: Tensor):
    from monosema.data import TokenSplit

    model = tiny_decoder()
    numbers = (contexts == BOS).cumsum(1).to(torch.int32) - 1
    split = TokenSplit(contexts.int(), frozenset({BOS}), "contexts", documents=numbers)
    alone = torch.cat([contexts[:, :5], contexts[:, 5:]])
    together, apart = evaluate(random_sae(LATER), model, split), evaluate(random_sae(LATER), model, alone)
    for name in ("ce_clean", "ce_spliced", "ce_ablated", "kl", "fve"):
        assert getattr(together, name) == pytest.approx(getattr(apart, name), rel=1e-9), name


def test_both_ablations_have_their_figures_and_the_first_is_the_flat_one(decoder: LanguageModel, contexts: Tensor):
    both = evaluate(random_sae(), decoder, contexts)
    assert both.ablations is not None and set(both.ablations) == {"zero", "mean"}
    for name in ("zero", "mean"):
        alone = evaluate(random_sae(), decoder, contexts, ablation=name)
        assert alone.ablations is not None and list(alone.ablations) == [name]
        assert asdict(alone.ablations[name]) == asdict(both.ablations[name])
        assert alone.ablation == name
        assert (alone.ce_ablated, alone.ce_loss_score) == (both.ablations[name].ce, both.ablations[name].ce_loss_score)
    assert both.ce_ablated == both.ablations["zero"].ce
    constant = evaluate(constant_sae(0.0), decoder, contexts)  # splices what zero ablation does
    assert constant.ablations is not None
    assert constant.ce_spliced == pytest.approx(constant.ablations["zero"].ce, rel=1e-12)
    assert constant.top1_agreement == constant.ablations["zero"].top1_agreement < 1
    assert evaluate(identity_sae(), decoder, contexts).top1_agreement == 1


def test_top1_agreement_is_the_share_of_equal_argmaxes(decoder: LanguageModel, contexts: Tensor):
    special = contexts == BOS
    with torch.no_grad(), decoder.edits({SITE: lambda value: torch.where(special.unsqueeze(-1), value, 0.3)}):
        edited = decoder(contexts).argmax(-1)
    clean = decoder(contexts).argmax(-1)
    counted = ~special[:, :-1] & ~special[:, 1:]
    expected = (edited == clean)[:, :-1][counted].double().mean().item()
    assert evaluate(constant_sae(0.3), decoder, contexts).top1_agreement == pytest.approx(expected, rel=1e-12)


def test_what_does_not_fit_is_refused(decoder: LanguageModel, contexts: Tensor):
    with pytest.raises(ConfigError, match="no coder given"):
        evaluate_many({}, decoder, contexts)
    with pytest.raises(ConfigError, match="n_batches counts tensors of activations"):
        evaluate(random_sae(), decoder, contexts, n_batches=2)
    with pytest.raises(ShapeError, match="d_in is 8"):
        evaluate_many({"a": random_sae(), "b": identity_sae(8)}, decoder, contexts)
    broken = random_sae()
    with torch.no_grad():
        assert broken.b_enc is not None
        broken.b_enc[2] = math.nan
    with pytest.raises(DataError, match="the coder's b_enc must be finite"):
        evaluate_many({"a": random_sae(), "b": broken}, activations=torch.zeros(3, WIDTH))
    with pytest.raises(DataError, match="at least 2 tokens"):
        evaluate(random_sae(), decoder, torch.full((2, 6), BOS))
