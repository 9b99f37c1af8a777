"""Dictionaries of every architecture, in the model: what they write is put in the place of their sites, by edits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from evaluation_tiny import BOS, SITE, WIDTH
from torch import Tensor
from torch.nn.functional import cross_entropy

from monosema.coders import (
    CLT,
    SAE,
    AbsTopK,
    BatchTopK,
    Crosscoder,
    Dictionary,
    Gated,
    JumpReLU,
    ReLU,
    TanhReLU,
    TopK,
    Transcoder,
)
from monosema.evaluation import evaluate
from monosema.models import LanguageModel

MLPS = ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
READ = ["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"]
SITES = [SITE, "blocks.2.hook_resid_pre"]


def bound(coder: Dictionary, read: list[str], written: list[str] | None = None) -> Dictionary:
    coder.bind("+".join(read), "+".join(written or read), {})
    return coder


def sae(activation) -> Dictionary:
    coder = SAE(WIDTH, 24, activation=activation, dtype="float64")
    return bound(coder, [SITE])


def transcoder() -> Dictionary:
    coder = Transcoder(WIDTH, WIDTH, 24, activation=ReLU(), skip=True, dtype="float64")
    with torch.no_grad():
        coder.W_skip.copy_(0.2 * torch.eye(WIDTH))
    return bound(coder, READ[:1], MLPS[:1])


CODERS: dict[str, Callable[[], Dictionary]] = {
    **{type(each).__name__: lambda each=each: sae(each) for each in (ReLU(), Gated(), JumpReLU(), TanhReLU())},
    **{type(each).__name__: lambda each=each: sae(each) for each in (TopK(k=3), AbsTopK(k=3), BatchTopK(k=3))},
    "one latent": lambda: bound(SAE(WIDTH, 1, activation=ReLU(), dtype="float64"), [SITE]),
    "skip": transcoder,
    "crosscoder": lambda: bound(Crosscoder([WIDTH, WIDTH], 24, activation=ReLU(), dtype="float64"), SITES),
    "CLT": lambda: bound(CLT([WIDTH, WIDTH], [WIDTH, WIDTH], 24, activation=ReLU(), dtype="float64"), READ, MLPS),
}


@pytest.mark.parametrize("name", CODERS)
def test_what_is_written_takes_the_sites_place(name: str, decoder: LanguageModel, contexts: Tensor):
    coder = CODERS[name]()
    text = contexts != BOS
    read, written = coder.hook_name.split("+"), coder.hook_name_out.split("+")
    values = decoder.capture(contexts, [*read, *written])
    x, y = (torch.cat([values[site][text] for site in sites], 1) for sites in (read, written))
    with torch.no_grad():
        x_hat, latents = coder.eval()(x), coder.encode(x)
    report = evaluate(coder.train(), decoder, contexts, progress=False)
    error, variation = (y - x_hat).square().sum(), (y - y.mean(0)).square().sum()
    assert report.fve == pytest.approx(1 - float(error / variation), rel=1e-9)
    assert report.l0 == int((latents != 0).sum()) / len(x)
    assert report.l1 == pytest.approx(float(latents.abs().sum() / len(x)), rel=1e-9)
    assert report.d_sae == latents.shape[1] == len(report.firing_density)
    for other in fields(report.latents):
        assert len(getattr(report.latents, other.name)) == report.d_sae
    assert (report.encoder_norm > 0, report.decoder_norm > 0) == (True, True)
    is_sae = isinstance(report.encoder_decoder_cosine, float) and read == written
    assert math.isnan(report.encoder_decoder_cosine) is not is_sae

    for figure, rows in (("ce_spliced", x_hat), ("ce_ablated", torch.zeros_like(y))):
        edits = {}
        for site, own in zip(written, rows.split(WIDTH, 1), strict=True):
            value = values[site].clone()
            value[text] = own
            edits[site] = lambda _, value=value: value
        with torch.no_grad(), decoder.edits(edits):
            logits = decoder(contexts)
        counted = text[:, :-1] & text[:, 1:]
        expected = cross_entropy(logits[:, :-1][counted], contexts[:, 1:][counted])
        assert getattr(report, figure) == pytest.approx(float(expected), rel=1e-9)
    if len(written) > 1:
        sites = zip(written, y.split(WIDTH, 1), x_hat.split(WIDTH, 1), strict=True)
        for site, own, hat in sites:
            alone = 1 - float((own - hat).square().sum() / (own - own.mean(0)).square().sum())
            assert report.fve_per_site[site] == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["ReLU", "BatchTopK", "Gated"])
def test_lower_precision_is_near_double(name: str, dtype: str, decoder: LanguageModel, contexts: Tensor):
    exact = CODERS[name]()
    low = SAE(WIDTH, 24, activation=exact.config.activation, dtype=dtype)
    low.load_state_dict(exact.state_dict())
    low.bind(SITE, SITE, {})
    a, b = (evaluate(coder, decoder, contexts, progress=False) for coder in (exact, low))
    bound = 1e-5 if dtype == "float32" else 0.03
    for figure in ("fve", "mse", "cosine", "norm_ratio", "l1", "ce_spliced", "kl"):
        assert getattr(b, figure) == pytest.approx(getattr(a, figure), rel=bound), figure
    assert (b.ce_clean, b.ce_ablated) == (a.ce_clean, a.ce_ablated)


def test_latents_that_never_fire_and_rows_without_direction(decoder: LanguageModel, contexts: Tensor):
    coder = sae(ReLU())
    with torch.no_grad():
        coder.b_enc.fill_(-1e6)
        coder.W_dec[:6] = 0
        coder.W_enc_rows[4:10] = 0
    report = evaluate(coder, decoder, contexts, progress=False)
    assert (report.l0, report.l1, report.n_alive, report.dead_fraction) == (0, 0, 0, 1)
    assert report.log10_density_histogram == (24, *[0] * 19)
    assert (report.ce_loss_score, report.kl_score) == (0, 0), "without a bias it is zero ablation"
    assert math.isnan(report.relative_reconstruction_bias)
    table = report.latents
    assert bool(table.mean_activation.isnan().all()) and bool((table.max_activation == 0).all())
    assert table.encoder_decoder_cosine[:10].tolist() == [0.0] * 10
    assert bool((table.encoder_decoder_cosine[10:] > 0.999).all()), "initialised as the encoder's"
    assert (table.max_decoder_cosine[:6].tolist(), table.decoder_norm[:6].tolist()) == ([0.0] * 6, [0.0] * 6)
    assert all(math.isfinite(value) for value in (report.max_decoder_cosine, report.max_encoder_cosine))
    assert report.encoder_decoder_cosine == pytest.approx(14 / 24, rel=1e-6)


def test_one_latent_has_no_other(decoder: LanguageModel, contexts: Tensor):
    report = evaluate(CODERS["one latent"](), decoder, contexts, progress=False)
    assert math.isnan(report.max_decoder_cosine) and math.isnan(report.max_encoder_cosine)
    assert report.to_dict()["max_decoder_cosine"] is None
    assert "max_decoder_cosine" in str(report)


def test_a_constant_dimension_has_no_share_and_disturbs_no_other():
    rows = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 3] = 1 / 3
    report = evaluate(sae(ReLU()), activations=rows)
    undefined = report.fve_per_dimension.isnan().nonzero().flatten().tolist()
    assert undefined == [3] and math.isfinite(report.fve)
    assert report.to_dict(per_latent=True)["fve_per_dimension"][3] is None
