"""The loss increases that resampling draws from."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import monosema as ms
from monosema.core.seeds import random_stream
from monosema.runs.model_loss import _one_each, model_loss_increase

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def coder(model: ms.LanguageModel) -> ms.SparseCoder:
    coder = ms.SAE(d_in=model.site(SITE).width, d_sae=24, activation=ms.TopK(k=2), seed=3)
    coder.bind(SITE, SITE, {})
    return coder


def test_each_context_offers_one_token_that_the_dictionary_makes_worse(
    model: ms.LanguageModel, tokens: ms.Tokens, coder: ms.SparseCoder
) -> None:
    stream = ms.ActivationStream(model, tokens, SITE, batch_size=64)
    rows, losses = model_loss_increase(stream, 0)(coder, 12)
    few, drawn = model_loss_increase(stream, 0, one_per_context=True)(coder, 12)
    assert len(drawn) == len(few) == 12
    assert len(losses) > 12 * 25
    assert bool((drawn > 0).all())
    for row, loss in zip(few, drawn, strict=True):
        place = (rows == row).all(1).nonzero().squeeze(1)
        assert bool((losses[place] == loss).any())


def test_the_increase_is_of_the_next_tokens_loss(
    model: ms.LanguageModel, tokens: ms.Tokens, coder: ms.SparseCoder
) -> None:
    with torch.no_grad():
        coder.W_dec.zero_()
    stream = ms.ActivationStream(model, tokens, SITE, batch_size=64)
    losses = model_loss_increase(stream, 0)(coder, 1)[1]
    split = stream.split
    first = torch.randperm(split.n_contexts, generator=random_stream(0, "model_loss"))[0]
    ids = split.contexts[first].long()
    special = split.special_mask(ids[None])[0]
    with torch.no_grad(), model.edits({SITE: lambda x: torch.where(special[:, None], x, 0)}):
        spliced = cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="none")
    with torch.no_grad():
        clean = cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="none")
    torch.testing.assert_close(losses, (spliced - clean)[~special[:-1]], rtol=1e-4, atol=1e-5)


def test_one_each_follows_the_increase_and_skips_what_is_unusable() -> None:
    increase = torch.tensor([[9.0, 1.0, 3.0], [-1.0, -2.0, 5.0], [-1.0, 0.0, -3.0]]).repeat(2000, 1)
    usable = torch.tensor([[False, True, True], [True, True, True], [True, True, True]]).repeat(2000, 1)
    mask = _one_each(increase, usable, torch.Generator().manual_seed(0))
    shares = mask.reshape(2000, 3, 3).double().mean(0)
    assert shares[0].tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)
    assert shares[1].tolist() == [0, 0, 1]
    assert shares[2].tolist() == [0, 0, 0]
