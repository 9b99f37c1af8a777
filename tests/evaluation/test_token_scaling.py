"""Dictionaries that scale tokens by their own size, where they are put into a model."""

from __future__ import annotations

import math

import pytest
import torch
from evaluation_tiny import BOS, WIDTH, identity_sae, random_sae
from torch import Tensor

from monosema.coders import CLT, ReLU, Transcoder
from monosema.evaluation import evaluate, evaluate_replacement
from monosema.metrics import fve
from monosema.models import LanguageModel

SITE = "blocks.0.hook_resid_post"
READ, WRITTEN = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"


@pytest.mark.parametrize("kind", ["constant_norm", "layer_norm"])
def test_an_exact_dictionary_of_scaled_tokens_changes_nothing(
    kind: str, decoder: LanguageModel, contexts: Tensor
) -> None:
    """``x̂ = u · spread + shift`` is x, but for layer norm's 1e-5 beside a deviation of about one."""
    sae = identity_sae(site=SITE)
    sae.set_token_scaling(kind)
    replaced = evaluate_replacement(sae, decoder, contexts)
    alone = evaluate(sae, decoder, contexts)
    assert replaced.replacement_score == pytest.approx(1.0, abs=1e-4)
    assert alone.ce_loss_score == pytest.approx(1.0, abs=1e-4)
    assert alone.fve == pytest.approx(1.0, abs=1e-6)


def test_the_figures_are_those_of_raw_rows(decoder: LanguageModel, contexts: Tensor) -> None:
    sae = random_sae(SITE)
    sae.set_token_scaling("constant_norm")
    x = decoder.capture(contexts, [SITE])[SITE][contexts != BOS]
    spread = x.norm(dim=1, keepdim=True) / math.sqrt(WIDTH)
    f = torch.relu((x / spread - sae.b_dec) @ sae.W_enc + sae.b_enc)
    x_hat = (f @ sae.W_dec + sae.b_dec) * spread
    report = evaluate(sae, decoder, contexts)
    assert report.fve == pytest.approx(fve(x, x_hat), rel=1e-9)
    assert report.l0 == pytest.approx((f > 0).sum(1).double().mean().item())


@pytest.mark.parametrize("kind", ["constant_norm", "layer_norm"])
@pytest.mark.parametrize("variant", ["transcoder", "stack"])
def test_a_replaced_mlp_is_what_the_coder_gives(
    variant: str, kind: str, decoder: LanguageModel, contexts: Tensor
) -> None:
    if variant == "transcoder":
        coder = Transcoder(WIDTH, WIDTH, 24, activation=ReLU(), dtype="float64")
    else:
        coder = CLT([WIDTH], [WIDTH], 24, activation=ReLU(), dtype="float64")
    coder.bind(READ, WRITTEN, {})
    coder.requires_grad_(False).set_token_scaling(kind)
    values = decoder.capture(contexts, [READ, WRITTEN])
    usable = (contexts != BOS).unsqueeze(-1)
    new = torch.where(usable, coder(values[READ]), values[WRITTEN])
    with torch.no_grad(), decoder.edits({WRITTEN: lambda value: new}):
        logits = decoder(contexts)
    counted = ~(contexts == BOS)[:, :-1] & ~(contexts == BOS)[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][counted], contexts[:, 1:][counted]).item()
    assert evaluate_replacement(coder, decoder, contexts).ce_replaced == pytest.approx(loss, rel=1e-9)
