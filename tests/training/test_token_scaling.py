"""Training with tokens scaled by their own size: as on rows scaled beforehand, and right again on raw rows."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from training_tiny import ACTIVATIONS, BATCH, SPARSITY, D, F, batches, differences, make_trainer, snapshot

from monosema.coders import CLT, SAE, Crosscoder, Dictionary, JumpReLU, ReLU, TopK, Transcoder
from monosema.core.errors import ConfigError
from monosema.training import L0, Trainer, TrainingConfig
from monosema.training.resample import squared_errors
from monosema.training.terms import Resample

both_kinds = pytest.mark.parametrize("kind", ["constant_norm", "layer_norm"])
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def raw_batches(n: int, width: int = D) -> list[Tensor]:
    """Rows of very different sizes."""
    sizes = torch.linspace(-2, 3, BATCH, dtype=torch.float64).exp().unsqueeze(1)
    return [batch * sizes for batch in batches(n, width)]


def by_hand(x: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """u, spread and shift of one site."""
    if kind == "constant_norm":
        spread = x.square().sum(1, keepdim=True).sqrt() / math.sqrt(x.shape[1])
        return x / spread, spread, torch.zeros_like(spread)
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return (x - mean) / (deviation + 1e-5), deviation, mean


@both_kinds
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_an_sae_trains_as_on_rows_scaled_beforehand(name: str, kind: str) -> None:
    data = raw_batches(9)
    scaled = make_trainer(name, input_scaling=kind)
    reference = make_trainer(name, input_scaling="none")
    scaled.initialise(torch.cat(data))
    reference.initialise(by_hand(torch.cat(data), kind)[0])
    for batch in data[:8]:
        scaled.step(batch)
        reference.step(by_hand(batch, kind)[0])
    figures, expected = scaled.metrics(), reference.metrics()
    for figure in ("loss", "l0", "fve", "norm", "n_dead"):
        assert figures[figure] == pytest.approx(expected[figure], rel=1e-7), figure
    for parameter, value in scaled.coder.named_parameters():
        torch.testing.assert_close(value, dict(reference.coder.named_parameters())[parameter], **CLOSE)
    coder, plain = scaled.inference_coder(), reference.inference_coder()
    assert (coder.config.token_scaling, plain.config.token_scaling) == (kind, "none")
    u, spread, shift = by_hand(data[8], kind)
    torch.testing.assert_close(coder.encode(data[8]), plain.encode(u), **CLOSE)
    torch.testing.assert_close(coder(data[8]), plain(u) * spread + shift, **CLOSE)


@both_kinds
def test_a_transcoders_input_is_scaled_by_token_and_its_target_by_a_constant(kind: str) -> None:
    coder = Transcoder(D, D, F, activation=TopK(k=3), dtype="float64")
    trainer = Trainer(coder, TrainingConfig(tokens=8 * BATCH, lr=0.01, input_scaling=kind), BATCH)
    data = raw_batches(9, 2 * D)
    trainer.initialise(torch.cat(data))
    y = torch.cat(data)[:, D:]
    factor = math.sqrt(D) / float(y.norm(dim=1).mean())
    assert trainer.scaling.input.is_identity
    assert trainer.scaling.output.sites[0].factor == pytest.approx(factor)
    x, y = data[0].split(D, 1)
    u = by_hand(x, kind)[0]
    f = trainer.coder.encode_select(u, scaled=True).latents.to_dense()
    expected = (f @ coder.W_dec + coder.b_dec - factor * y).square().sum() / BATCH
    trainer.step(data[0])
    assert trainer.metrics()["loss/mse"] == pytest.approx(float(expected.detach()), rel=1e-9)
    for batch in data[1:8]:
        trainer.step(batch)
    u = by_hand(data[8][:, :D], kind)[0]
    f = trainer.coder.encode_select(u, scaled=True).latents.to_dense()
    prediction = (f @ coder.W_dec + coder.b_dec) / factor
    finished = trainer.inference_coder()
    torch.testing.assert_close(finished(data[8][:, :D]), prediction.detach(), **CLOSE)
    torch.testing.assert_close(finished(50 * data[8][:, :D]), finished(data[8][:, :D]), rtol=1e-3, atol=1e-3)


@both_kinds
@pytest.mark.parametrize("linear", ["none", "expected_norm_one", "whitening"])
def test_a_coders_own_token_scaling_takes_a_linear_one_on_top(kind: str, linear: str) -> None:
    rows = torch.cat(raw_batches(8))
    config = TrainingConfig(tokens=4 * BATCH, lr=0.01, input_scaling=linear)
    made = {"activation": TopK(k=3), "dtype": "float64", "seed": 1}
    scaled = Trainer(SAE(D, F, token_scaling=kind, **made), config, BATCH)
    reference = Trainer(SAE(D, F, **made), config, BATCH)
    u, spread, shift = by_hand(rows, kind)
    scaled.initialise(rows)
    reference.initialise(u)
    for batch, batch_u in zip(rows.split(BATCH)[:4], u.split(BATCH), strict=False):
        scaled.step(batch)
        reference.step(batch_u)
    expected = reference.inference_coder()(u) * spread + shift
    torch.testing.assert_close(scaled.inference_coder()(rows), expected, rtol=1e-6, atol=1e-7)


@both_kinds
@pytest.mark.parametrize("variant", ["sae", "transcoder", "crosscoder", "stack"])
def test_training_a_finished_dictionary_further_starts_from_what_it_computes(kind: str, variant: str) -> None:
    made = {"activation": ReLU(), "dtype": "float64", "token_scaling": kind}
    coder: Dictionary = {
        "sae": lambda: SAE(D, F, **made),
        "transcoder": lambda: Transcoder(D, D, F, **made),
        "crosscoder": lambda: Crosscoder((D // 2, D // 2), F, **made),
        "stack": lambda: CLT((D // 2, D // 2), (D // 2, D // 2), F, **made),
    }[variant]()
    coder.is_trained = True
    rows = torch.cat(raw_batches(4, D if variant in ("sae", "crosscoder") else 2 * D))
    before = coder(rows[:, :D]).detach()
    for scaling in ("expected_norm", kind, "none"):
        trainer = Trainer(coder, TrainingConfig(tokens=BATCH, input_scaling=scaling, decoder="free"), BATCH)
        trainer.initialise(rows)
        torch.testing.assert_close(trainer.inference_coder()(rows[:, :D]), before, rtol=1e-8, atol=1e-8)
        coder.load_state_dict(trainer.inference_coder().state_dict())


@both_kinds
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_state_goes_through_a_round_trip_bit_for_bit(name: str, kind: str) -> None:
    data = raw_batches(8)
    whole = make_trainer(name, input_scaling=kind)
    whole.initialise(data[0])
    for batch in data[:4]:
        whole.step(batch)
    saved = snapshot(whole)
    plain = saved.pop("plain")
    resumed = make_trainer(name, input_scaling=kind)
    resumed.load_state_dict(saved, plain)
    for batch in data[4:]:
        whole.step(batch)
        resumed.step(batch)
    assert differences(snapshot(whole), snapshot(resumed)) == []
    assert json.dumps(whole.metrics()) == json.dumps(resumed.metrics())


@both_kinds
def test_first_thresholds_and_resampling_see_tokens_scaled_once(kind: str) -> None:
    rows = torch.cat(raw_batches(8))
    u = by_hand(rows, kind)[0]
    made = {"activation": JumpReLU(), "dtype": "float64", "seed": 1}
    options = {"tokens": 4 * BATCH, "sparsity": L0(target_l0=1.0), "revive": None}
    scaled = Trainer(SAE(D, F, **made), TrainingConfig(input_scaling=kind, **options), BATCH)
    reference = Trainer(SAE(D, F, **made), TrainingConfig(input_scaling="none", **options), BATCH)
    scaled.initialise(rows)
    reference.initialise(u)
    threshold = reference.coder.activation.threshold.detach()
    assert float(threshold.mean()) > 0
    torch.testing.assert_close(scaled.coder.activation.threshold.detach(), threshold, **CLOSE)
    for coder in (scaled.coder, reference.coder):
        coder.b_enc.data.fill_(0.3)
    shifted = u + 0.5  # scaled once more it would be another input
    found = squared_errors(scaled.coder, shifted, u)
    torch.testing.assert_close(found, squared_errors(reference.coder, shifted, u), **CLOSE)


@both_kinds
def test_resampling_trains_under_token_scaling(kind: str) -> None:
    policy = Resample(every_tokens=2 * BATCH, dead_after_tokens=1)
    trainer = make_trainer("ReLU", 20, input_scaling=kind, revive=policy, sparsity=SPARSITY["ReLU"])
    data = raw_batches(6)
    trainer.initialise(torch.cat(data))
    trainer.coder.b_enc.data[:5] = -100
    for batch in data:
        trainer.step(batch)
    trainer.check_finite()
    assert trainer.metrics()["n_resampled"] >= 5


def test_what_cannot_be_right_is_refused_naming_both() -> None:
    config = TrainingConfig(tokens=BATCH, input_scaling="layer_norm")
    other = SAE(D, F, activation=ReLU(), token_scaling="constant_norm")
    with pytest.raises(
        ConfigError, match="token_scaling='constant_norm', so input_scaling='layer_norm' cannot be used"
    ):
        Trainer(other, config, BATCH)
    trained = SAE(D, F, activation=ReLU())
    trained.is_trained = True
    with pytest.raises(ConfigError, match="input_scaling='layer_norm' cannot be used on this coder: its weights"):
        Trainer(trained, config, BATCH)
    causal = Crosscoder((D, D), F, activation=ReLU(), causal=True)
    with pytest.raises(ConfigError, match="token_scaling='layer_norm' cannot be used with causal=True"):
        Trainer(causal, config, BATCH)
    skip = Transcoder(D, D, F, activation=ReLU(), skip=True)
    with pytest.raises(ConfigError, match="SkipTranscoder and layer_norm cannot be used together"):
        Trainer(skip, config, BATCH)
    stack = CLT((D, D), (D, D), F, activation=ReLU())
    stack.bind("a+b", "a+b", {})
    with pytest.raises(ConfigError, match="needs other sites written than read"):
        Trainer(stack, config, BATCH)
    for coder in (trained, causal, skip, stack):
        assert coder.config.token_scaling == "none"
