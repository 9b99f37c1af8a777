"""Evaluation of padded contexts, of documents kept apart and of chosen positions, against each document alone."""

from __future__ import annotations

import pytest
import torch
from evaluation_tiny import BOS, SITE, VOCABULARY, random_sae
from torch import Tensor
from torch.nn.functional import cross_entropy

from monosema.data import Positions, TokenSplit
from monosema.evaluation import Report, evaluate, evaluate_replacement
from monosema.models import LanguageModel

SIZE = 12
FIGURES = ("fve", "mse", "cosine", "l0", "n_tokens", "ce_clean", "ce_spliced", "ce_ablated", "kl", "n_predicted_tokens")


def documents(n: int = 14) -> list[list[int]]:
    """Documents of 2 to 8 tokens behind BOS."""
    generator = torch.Generator().manual_seed(4)
    return [[BOS, *torch.randint(1, VOCABULARY, (2 + 5 * i % 7,), generator=generator).tolist()] for i in range(n)]


def padded(rows: list[list[int]], **options) -> TokenSplit:
    """Each document in a context of its own, padded by a token of the text."""
    ids = torch.full((len(rows), SIZE), 7, dtype=torch.int32)
    numbers = torch.full((len(rows), SIZE), -1)
    for context, row in enumerate(rows):
        ids[context, : len(row)] = torch.tensor(row, dtype=torch.int32)
        numbers[context, : len(row)] = 0
    return TokenSplit(ids, frozenset({BOS}), "heldout", documents=numbers, **options)


def side_by_side(rows: list[list[int]]) -> TokenSplit:
    """The same documents, as many in a context as fit, kept apart; what is left of a context is padding."""
    contexts: list[list[list[int]]] = [[]]
    for row in rows:
        if sum(map(len, contexts[-1])) + len(row) > SIZE:
            contexts.append([])
        contexts[-1].append(row)
    ids, numbers = torch.full((len(contexts), SIZE), 7, dtype=torch.int32), torch.full((len(contexts), SIZE), -1)
    for context, parts in enumerate(contexts):
        flat = [token for part in parts for token in part]
        ids[context, : len(flat)] = torch.tensor(flat, dtype=torch.int32)
        numbers[context, : len(flat)] = torch.tensor([i for i, part in enumerate(parts) for _ in part])
    assert any(len(parts) > 1 for parts in contexts)
    return TokenSplit(ids, frozenset({BOS}), "heldout", documents=numbers)


def rows_alone(model: LanguageModel, rows: list[list[int]]) -> Tensor:
    return torch.cat([model.capture(torch.tensor([row]), [SITE])[SITE][0, 1:] for row in rows])


def figures(report: Report) -> list[float]:
    return [getattr(report, name) for name in FIGURES]


def test_padding_counts_nowhere(decoder: LanguageModel):
    rows, coder = documents(), random_sae()
    report = evaluate(coder, decoder, padded(rows), progress=False)
    alone = evaluate(coder, activations=rows_alone(decoder, rows), progress=False)
    assert report.n_tokens == alone.n_tokens == sum(len(row) - 1 for row in rows)
    assert (report.fve, report.mse, report.l0) == pytest.approx((alone.fve, alone.mse, alone.l0), rel=1e-6)
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = decoder(torch.tensor([row]))[0]
        losses += cross_entropy(logits[1:-1], torch.tensor(row[2:]), reduction="none").tolist()
    assert report.n_predicted_tokens == len(losses)
    assert report.ce_clean == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_documents_kept_apart_are_evaluated_as_each_alone(decoder: LanguageModel):
    rows, coder = documents(), random_sae()
    together = evaluate(coder, decoder, side_by_side(rows), batch_size=3, progress=False)
    alone = evaluate(coder, decoder, padded(rows), progress=False)
    assert figures(together) == pytest.approx(figures(alone), rel=1e-6)
    crossing = side_by_side(rows)
    plain = TokenSplit(crossing.contexts, crossing.special_token_ids, "heldout")
    assert evaluate(coder, decoder, plain, progress=False).ce_clean != pytest.approx(alone.ce_clean, rel=1e-3)


def test_a_replacement_of_documents_kept_apart(decoder: LanguageModel):
    from evaluation_tiny import random_transcoder

    rows, coder = documents(), random_transcoder()
    together = evaluate_replacement(coder, decoder, side_by_side(rows), progress=False)
    alone = evaluate_replacement(coder, decoder, padded(rows), progress=False)
    names = ("replacement_score", "ce_clean", "ce_replaced", "kl", "l0", "n_tokens", "n_predicted_tokens")
    assert [getattr(together, n) for n in names] == pytest.approx([getattr(alone, n) for n in names], rel=1e-6)


def test_without_special_tokens_no_prediction_reaches_into_another_document(decoder: LanguageModel):
    split = side_by_side(documents())
    bare = TokenSplit(split.contexts, frozenset(), "heldout", documents=split.documents)
    report = evaluate(random_sae(), decoder, bare, progress=False)
    assert report.n_predicted_tokens == sum(len(row) - 1 for row in documents())


def test_chosen_positions_alone_are_measured_and_edited_and_predict(decoder: LanguageModel):
    rows, coder = documents(), random_sae()
    report = evaluate(coder, decoder, padded(rows, positions=Positions(start=2, step=2)), progress=False)
    values = [decoder.capture(torch.tensor([row]), [SITE])[SITE][0, 2::2] for row in rows]
    chosen = evaluate(coder, activations=torch.cat(values), progress=False)
    assert (report.fve, report.n_tokens) == (pytest.approx(chosen.fve, rel=1e-6), chosen.n_tokens)
    assert report.n_predicted_tokens == sum(len(row[2:-1:2]) for row in rows), "the next token need not be chosen"


def test_padding_of_an_encoder_is_masked(encoder: LanguageModel):
    site, rows = "blocks.0.hook_resid_post", documents()
    coder = random_sae(site)
    alone = torch.cat([encoder.capture(torch.tensor([row]), [site])[site][0, 1:] for row in rows])
    expected = evaluate(coder, activations=alone, progress=False)
    report = evaluate(coder, encoder, padded(rows), progress=False)
    assert (report.fve, report.n_tokens) == (pytest.approx(expected.fve, rel=1e-6), expected.n_tokens)
    assert report.n_predicted_tokens is not None
    assert 0 < report.n_predicted_tokens < expected.n_tokens


def test_as_many_contexts_as_hold_the_tokens_asked_for(decoder: LanguageModel):
    split = padded(documents())
    asked = split.n_tokens // 2
    report = evaluate(random_sae(), decoder, split, n_tokens=asked, progress=False)
    assert report.n_tokens + report.n_special_positions == 7 * SIZE, "half of the tokens are half of the contexts"
