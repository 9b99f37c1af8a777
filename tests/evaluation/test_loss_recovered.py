"""``loss_recovered`` against runs by hand, text by text."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

import monosema as ms
from monosema.coders import SAE, Transcoder
from monosema.core.errors import ConfigError, DataError
from monosema.evaluation import loss_recovered

SITE = "blocks.1.hook_resid_post"
TEXTS = ["def f(x):\n    return x + 1\n", "import os\n", "for i in range(10):\n    print(i, i * i)\n"]


@pytest.fixture(scope="module")
def model() -> ms.LanguageModel:
    return ms.load_model("builtin")


def coder() -> ms.SparseCoder:
    torch.manual_seed(0)
    return SAE(256, 64)


def put(own: torch.Tensor, made, value: torch.Tensor) -> torch.Tensor:
    """``made(value)`` where a position is not special."""
    return torch.where(own, value, made(value))


def by_hand(model: ms.LanguageModel, made, max_len: int | None = None) -> tuple[float, float, float]:
    """Sums over texts run one by one, with plain edits."""
    totals, n = [0.0, 0.0, 0.0], 0
    special = torch.tensor(sorted(model.special_token_ids))
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text)["input_ids"][:max_len]])
        own = torch.isin(ids, special).unsqueeze(-1)
        runs = (lambda v: v, partial(put, own, made), partial(put, own, torch.zeros_like))
        counted = ~own[0, :-1, 0] & ~own[0, 1:, 0]
        n += int(counted.sum())
        for index, run in enumerate(runs):
            with torch.no_grad(), model.edits({SITE: run}):
                logits = model(ids)[0, :-1][counted]
            totals[index] += float(cross_entropy(logits, ids[0, 1:][counted], reduction="sum"))
    return tuple(total / n for total in totals)


@pytest.mark.parametrize("max_len", [None, 6])
def test_the_losses_are_those_of_each_text_alone(model: ms.LanguageModel, max_len: int | None):
    made = coder()
    found = loss_recovered(TEXTS, model, SITE, made, max_len=max_len)
    original, reconstructed, zero = by_hand(model, made, max_len)
    assert found[:3] == pytest.approx((original, reconstructed, zero), rel=1e-5)
    assert found.frac_recovered == pytest.approx((zero - reconstructed) / (zero - original), rel=1e-4)
    assert made.hook_name is None or made.hook_name == "", "the coder given is left alone"


def test_one_text_is_a_list_of_one(model: ms.LanguageModel):
    made = coder()
    assert loss_recovered(TEXTS[0], model, SITE, made) == loss_recovered(TEXTS[:1], model, SITE, made)


def test_what_cannot_be_measured_is_refused(model: ms.LanguageModel):
    with pytest.raises(DataError, match="at least two tokens"):
        loss_recovered([], model, SITE, coder())
    with pytest.raises(DataError, match="at least two tokens"):
        loss_recovered("", model, SITE, coder())
    with pytest.raises(ConfigError, match=r"max_len must be from 2 to the model's positions, 256, got 1000"):
        loss_recovered(TEXTS, model, SITE, coder(), max_len=1000)
    transcoder = Transcoder(256, 256, 64)
    transcoder.bind("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", {})
    with pytest.raises(ConfigError, match="puts an SAE in its site's place"):
        loss_recovered(TEXTS, model, SITE, transcoder)
    broken = coder()
    with torch.no_grad():
        broken.W_dec[0, 0] = math.nan
    with pytest.raises(DataError, match="W_dec must be finite"):
        loss_recovered(TEXTS, model, SITE, broken)
