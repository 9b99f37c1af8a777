"""Confidence intervals of a report, against leaving out each document for real."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from evaluation_tiny import BOS, SITE, VOCABULARY, random_sae
from torch import Tensor

from monosema.data import TokenSplit
from monosema.evaluation import Report, evaluate
from monosema.metrics import ce_loss_score
from monosema.models import LanguageModel

T6 = 2.4469118511449692
"""97.5 % of Student's t with six degrees of freedom lie below: there are seven documents."""
LOWEST = {"mse": 0, "norm_ratio": 0, "cosine": -1, "l0": 0, "l1": 0, "kl": 0, "top1_agreement": 0}
HIGHEST = {"fve": 1, "fve_per_token_mean": 1, "cosine": 1, "kl_score": 1, "top1_agreement": 1, "l0": 24}


def jackknife(name: str, value: float, without: list[float]) -> tuple[float, float]:
    """``value -+ t sqrt((g - 1) / g sum (theta_i - mean)^2)`` by its formula, inside the figure's range."""
    g, centre = len(without), sum(without) / len(without)
    assert g == 7
    error = T6 * math.sqrt((g - 1) / g * sum((each - centre) ** 2 for each in without))
    return max(value - error, LOWEST.get(name, -math.inf)), min(value + error, HIGHEST.get(name, math.inf))


def numbers_of(contexts: Tensor) -> Tensor:
    """The document of each position: one begins at every ``BOS`` but that at the start of a context, and goes on."""
    count, numbers = 0, torch.zeros_like(contexts)
    for b, row in enumerate(contexts.tolist()):
        for t, token in enumerate(row):
            count += token == BOS and t > 0
            numbers[b, t] = count
    return numbers


@pytest.fixture
def split(contexts: Tensor) -> TokenSplit:
    return TokenSplit(contexts.int(), frozenset({BOS}), "heldout")


@pytest.fixture
def report(decoder: LanguageModel, split: TokenSplit) -> Report:
    return evaluate(random_sae(), decoder, split, progress=False, batch_size=2)


def test_figures_of_rows(report: Report, decoder: LanguageModel, contexts: Tensor):
    text = contexts != BOS
    x, numbers = decoder.capture(contexts, [SITE])[SITE][text], numbers_of(contexts)[text]
    with torch.no_grad():
        coder = random_sae()
        x_hat, latents = coder(x), coder.encode(x)
    own = 1 - (x - x_hat).square().sum(1) / (x - x.mean(0)).square().sum(1)
    figures: dict[str, Callable[[Tensor], Tensor]] = {
        "fve": lambda r: 1 - (x - x_hat)[r].square().sum() / (x[r] - x[r].mean(0)).square().sum(),
        "fve_per_token_mean": lambda r: own[r].mean(),
        "mse": lambda r: (x - x_hat)[r].square().sum(1).mean(),
        "cosine": lambda r: torch.cosine_similarity(x[r], x_hat[r]).mean(),
        "norm_ratio": lambda r: (x_hat[r].norm(dim=1) / x[r].norm(dim=1)).mean(),
        "relative_reconstruction_bias": lambda r: x_hat[r].square().sum() / (x * x_hat)[r].sum(),
        "l0": lambda r: (latents[r] != 0).sum(1).double().mean(),
        "l1": lambda r: latents[r].sum(1).mean(),
    }
    assert figures.keys() == {name for name in report.intervals if "ce" not in name and "kl" not in name} - {
        name for name in report.intervals if "top1" in name
    }
    assert report.n_documents == len(numbers.unique()) == 7
    for name, figure in figures.items():
        without = [float(figure(numbers != document)) for document in numbers.unique()]
        low, high = jackknife(name, float(figure(numbers >= 0)), without)
        assert report.intervals[name] == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9)), name
        assert low < getattr(report, name) < high


def test_figures_of_losses(report: Report, decoder: LanguageModel, contexts: Tensor):
    text = contexts != BOS
    counted = text[:, :-1] & text[:, 1:]
    numbers = numbers_of(contexts)[:, :-1][counted]

    def log_p(change: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad(), decoder.edits({SITE: lambda v: torch.where(text.unsqueeze(-1), change(v), v)}):
            return decoder(contexts).log_softmax(-1)[:, :-1][counted]

    clean, spliced = log_p(lambda v: v), log_p(random_sae())
    zero = log_p(torch.zeros_like)
    targets = contexts[:, 1:][counted].unsqueeze(1)
    ce = {name: -p.gather(1, targets).squeeze(1) for name, p in (("c", clean), ("s", spliced), ("z", zero))}
    kl = {name: (clean.exp() * (clean - q)).sum(1) for name, q in (("s", spliced), ("z", zero))}

    def mean(values: Tensor, rows: Tensor) -> float:
        return float(values[rows].mean())

    figures: dict[str, Callable[[Tensor], float]] = {
        "ce_clean": lambda r: mean(ce["c"], r),
        "ce_spliced": lambda r: mean(ce["s"], r),
        "ce_ablated": lambda r: mean(ce["z"], r),
        "ablations/zero/ce": lambda r: mean(ce["z"], r),
        "ce_loss_score": lambda r: ce_loss_score(mean(ce["c"], r), mean(ce["s"], r), mean(ce["z"], r)),
        "kl": lambda r: mean(kl["s"], r),
        "kl_score": lambda r: 1 - mean(kl["s"], r) / mean(kl["z"], r),
        "top1_agreement": lambda r: mean((clean.argmax(1) == spliced.argmax(1)).double(), r),
    }
    for name, figure in figures.items():
        without = [figure(numbers != document) for document in numbers.unique()]
        low, high = jackknife(name, figure(numbers >= 0), without)
        assert report.intervals[name] == (pytest.approx(low, rel=1e-8), pytest.approx(high, rel=1e-8)), name


def test_one_document_has_no_interval(decoder: LanguageModel):
    """Without a special token inside, contexts are documents of their own; one context is one."""
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    one, two = (evaluate(random_sae(), decoder, ids[:n], progress=False) for n in (1, 2))
    assert (one.n_documents, one.intervals) == (1, {})
    assert two.n_documents == 2 and two.intervals["fve"][0] < two.fve < two.intervals["fve"][1] <= 1
    assert any("one document, so the figures have no intervals" in note for note in one.notes)
    assert any("the intervals rest on 2 documents" in note for note in two.notes)
    whole = TokenSplit(torch.cat([ids, ids.flip(0)]).int(), frozenset({BOS}), "heldout")
    assert evaluate(random_sae(), decoder, whole, progress=False).n_documents == 4
    rows = evaluate(random_sae(), activations=decoder.capture(ids, [SITE])[SITE])
    assert (rows.n_documents, rows.intervals) == (None, {}), "of rows documents are not known"


@pytest.mark.parametrize("inside", [BOS, 5], ids=["BOS", "EOS"])
def test_documents_begin_where_a_special_token_stands_inside(inside: int, decoder: LanguageModel):
    """Documents a a a | b b | c and on into the next context | d: whatever the token is that parts them."""
    a, b, c, d = 10, 11, 12, 13
    ids = torch.tensor([[a, a, a, inside, b, b, inside, c], [c, c, inside, d, d, d, d, d]], dtype=torch.int32)
    report = evaluate(random_sae(), decoder, TokenSplit(ids, frozenset({inside}), "heldout"), progress=False)
    assert (report.n_documents, report.n_special_positions) == (4, 3)
    given = evaluate(random_sae(), decoder, TokenSplit(ids, frozenset(), "heldout"), progress=False)
    assert given.n_documents == 2, "nothing parts them: a context each"
