"""The training step against a dense autograd reference, and everything that must not change state."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from dense_reference import Recipe, Reference
from training_tiny import ACTIVATIONS, BATCH, SPARSITY, D, F, batches, differences, make_trainer, snapshot

from monosema.coders import SAE, BatchTopK, Gated, JumpReLU, ReLU, TopK, Transcoder
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.training import L0, L1, NonFiniteStepError, Trainer, TrainingConfig

N_STEPS = 30
BOTH = [
    (name, decoder)
    for name in ACTIVATIONS
    for decoder in ("unit_norm", "free")
    if (name, decoder) != ("TanhReLU", "unit_norm")
]
"""Activations and decoders; tanh-ReLU saturates and needs a free one."""


def scale_of(scaling):
    """The one factor of a scaling of one site."""
    (site,) = scaling.sites
    return site.factor


def recipe_of(trainer: Trainer, name: str) -> Recipe:
    sparsity, config = trainer.control.sparsity, trainer.config
    return Recipe(
        kind=name,
        k=getattr(ACTIVATIONS[name], "k", 0),
        bandwidth=getattr(ACTIVATIONS[name], "bandwidth", 0),
        coefficient=0.0 if sparsity is None else sparsity.coefficient,
        sparsity_warmup=0.0 if sparsity is None else sparsity.warmup_fraction,
        norm_weighted=not trainer.unit_norm,
        n_steps=trainer.n_steps,
        lr=trainer.lr,
        warmup=config.warmup_fraction,
        decay=config.decay_fraction,
        aux_k=3,
        aux_coefficient=1 / 32,
        dead_after=2 * BATCH,
        unit_norm=trainer.unit_norm,
        beta2=0.95,
    )


@pytest.mark.parametrize(("name", "decoder"), BOTH)
def test_the_trajectory_equals_dense_autograd_training(name, decoder):
    trainer = make_trainer(name, N_STEPS, decoder=decoder, input_scaling="none")
    if name in ("ReLU", "Gated"):  # some latents start dead, so that AuxK has work
        bias = trainer.coder.b_enc if name == "ReLU" else trainer.coder.activation.b_gate
        bias.data[:6] = -8.0
    reference = Reference(dict(trainer.coder.named_parameters()), recipe_of(trainer, name))
    for step, batch in enumerate(batches(N_STEPS)):
        trainer.step(batch)
        reference.step(batch)
        assert trainer.metrics()["loss"] == pytest.approx(reference.losses[-1], rel=1e-9), f"loss of step {step}"
    for parameter, value in trainer.coder.named_parameters():
        assert torch.allclose(value, reference.p[parameter], rtol=0, atol=1e-9), parameter
    assert torch.equal(trainer.statistics.tokens_since_fired, reference.since_fired)
    assert max(reference.n_dead) > 0, "AuxK never had anything to do"
    moved = trainer.coder.W_dec - make_trainer(name, decoder=decoder).coder.W_dec
    assert float(moved.detach().abs().max()) > 0.05


def test_jumprelu_with_l1_trains_its_threshold_through_both_channels():
    """``∂f/∂θ`` is not zero near the threshold, so an L1 loss reaches θ as well."""
    trainer = make_trainer("JumpReLU", 5, sparsity=L1(coefficient=0.5, warmup_fraction=0.0), revive=None)
    coder, x = trainer.coder, batches(1)[0]
    theta = coder.activation.threshold.detach().clone()
    pre = ((x - coder.b_dec) @ coder.W_enc + coder.b_enc).detach()
    window = ((pre - theta).abs() < 0.2).double()
    f = pre * (pre > theta)
    norms = coder.W_dec.norm(dim=1)
    g_f = (-2 * (x - f @ coder.W_dec - coder.b_dec) @ coder.W_dec.T + 0.5 * norms) / BATCH
    expected = -(g_f * window * theta).sum(0) / 0.4
    trainer.step(x)
    # Adam's first moment after one step is (1 - β1) times the gradient
    moment = trainer.state_dict()[0]["adam.activation.threshold.exp_avg"]
    assert torch.allclose(moment, 0.1 * expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_metrics_change_no_state_and_no_weight_to_come(name):
    quiet, logged = make_trainer(name), make_trainer(name)
    for batch in batches(6):
        quiet.step(batch)
        logged.step(batch)
        before = snapshot(logged)
        assert json.dumps(logged.metrics()) == json.dumps(logged.metrics())
        logged.check_finite()
        logged.inference_coder()
        assert differences(before, snapshot(logged)) == []
    assert differences(snapshot(quiet), snapshot(logged)) == []


def test_metrics_by_hand():
    trainer = make_trainer("TopK", input_scaling="none")
    assert trainer.metrics() == {}
    coder, x = trainer.coder, batches(1)[0]
    out = coder(x).detach()
    trainer.step(x)
    metrics = trainer.metrics()
    residual, spread = (x - out).square().sum(), (x - x.mean(0)).square().sum()
    assert metrics["fve"] == pytest.approx(float(1 - residual / spread), rel=1e-12)
    assert metrics["loss/mse"] == metrics["loss"] == pytest.approx(float(residual) / BATCH, rel=1e-12)
    assert (metrics["l0"], metrics["tokens"]) == (3.0, BATCH)
    assert metrics["lr"] == pytest.approx(0.01 / 6)  # the first of six steps of warm-up


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(name, bad):
    trainer, data = make_trainer(name), batches(6)
    for batch in data[:3]:
        trainer.step(batch)
    before = snapshot(trainer)
    broken = data[3].clone()
    broken[5, 2] = bad
    trainer.step(broken)
    assert set(differences(before, snapshot(trainer))) == {"plain", "first_bad_step"}
    assert trainer.step_number == 4
    trainer.step(data[4])
    trainer.step(broken)
    with pytest.raises(NonFiniteStepError, match=r"step 3 was not finite.*near row 48"):
        trainer.check_finite()


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_state_goes_through_a_round_trip_bit_for_bit(name):
    sparsity = SPARSITY[name]
    options = {} if sparsity is None else {"sparsity": replace(sparsity, target_l0=3.0)}
    data = batches(12)
    whole = make_trainer(name, **options)
    whole.initialise(data[0])
    for batch in data[:6]:
        whole.step(batch)
    saved = snapshot(whole)
    plain = saved.pop("plain")
    resumed = make_trainer(name, **options)
    resumed.load_state_dict(saved, plain)
    for batch in data[6:]:
        whole.step(batch)
        resumed.step(batch)
    assert differences(snapshot(whole), snapshot(resumed)) == []
    assert json.dumps(whole.metrics()) == json.dumps(resumed.metrics())


def test_decoder_rows_keep_norm_one_and_a_free_decoder_does_not():
    unit, free = make_trainer("TopK", decoder="unit_norm"), make_trainer("TopK", decoder="free")
    for batch in batches(5):
        for trainer in (unit, free):
            trainer.step(batch)
        norms = unit.coder.W_dec.norm(dim=1)
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-14)
    assert float((free.coder.W_dec.detach().norm(dim=1) - 1).abs().max()) > 1e-3


def test_a_batch_smaller_than_k_or_without_variance_is_trained_on():
    few = batches(1, rows=2)[0]
    same = torch.ones(4, D, dtype=torch.float64)
    for name in ACTIVATIONS:
        trainer = make_trainer(name)
        trainer.step(few)
        trainer.step(few[:1])
        trainer.step(same)
        assert math.isnan(trainer.metrics()["fve"])
        trainer.check_finite()
    narrow = Trainer(SAE(D, F, activation=TopK(k=F), dtype="float64"), TrainingConfig(tokens=10), 2)
    narrow.step(few)
    narrow.check_finite()


@pytest.mark.parametrize(("name", "decoder"), BOTH)
def test_the_inference_coder_does_on_raw_rows_what_the_trained_one_does_on_scaled_rows(name, decoder):
    data = [7.0 * batch + 3.0 for batch in batches(9)]
    trainer = make_trainer(name, decoder=decoder)
    trainer.initialise(torch.cat(data))
    assert scale_of(trainer.scaling.input) == scale_of(trainer.scaling.output) != 1.0
    assert float(torch.cat(data).norm(dim=1).mean()) * scale_of(trainer.scaling.input) == pytest.approx(math.sqrt(D))
    for batch in data[:8]:
        trainer.step(batch)
    before = snapshot(trainer)
    coder, x = trainer.inference_coder(), data[8]
    expected = trainer.coder(x * scale_of(trainer.scaling.input)) / scale_of(trainer.scaling.input)
    assert torch.allclose(coder(x), expected.detach(), rtol=1e-9, atol=1e-10)
    trained = trainer.coder.encode_sparse(x * scale_of(trainer.scaling.input))
    assert torch.equal(coder.encode_sparse(x).indices, trained.indices)
    assert 0 < trained.nnz < BATCH * F or name == "TanhReLU"
    assert differences(before, snapshot(trainer)) == []
    if decoder == "unit_norm" or name not in ("TopK", "AbsTopK", "BatchTopK", "TanhReLU"):
        assert torch.allclose(coder.W_dec.norm(dim=1), torch.ones(F, dtype=torch.float64), atol=1e-12)
    assert not any(parameter.requires_grad for parameter in coder.parameters())


def transcoder(d_in: int = 6, d_out: int = 5, skip: bool = False) -> object:
    return Transcoder(d_in, d_out, F, activation=TopK(k=3), skip=skip, dtype="float64")


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_transcoder_rows_are_input_then_target(bound, skip):
    coder = transcoder(skip=skip)
    if bound:
        coder.bind("in", "out", {})
    trainer = Trainer(coder, TrainingConfig(tokens=160, lr=0.01), BATCH)
    rows = batches(10, width=11)
    trainer.initialise(rows[0])
    x, y = rows[0][:, :6], rows[0][:, 6:]
    assert scale_of(trainer.scaling.input) == pytest.approx(math.sqrt(6) / float(x.norm(dim=1).mean()))
    assert scale_of(trainer.scaling.output) == pytest.approx(math.sqrt(5) / float(y.norm(dim=1).mean()))
    expected = (
        coder(x * scale_of(trainer.scaling.input)) - y * scale_of(trainer.scaling.output)
    ).square().sum() / BATCH
    trainer.step(rows[0])
    assert trainer.metrics()["loss/mse"] == pytest.approx(float(expected.detach()), rel=1e-10)
    for batch in rows[1:]:
        trainer.step(batch)
    prediction = trainer.coder(x * scale_of(trainer.scaling.input)) / scale_of(trainer.scaling.output)
    assert torch.allclose(trainer.inference_coder()(x), prediction.detach(), rtol=1e-9)


def test_a_transcoder_of_equal_widths_reads_two_sites_once_it_is_bound():
    coder = transcoder(5, 5)
    coder.bind("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out", {})
    Trainer(coder, TrainingConfig(tokens=BATCH), BATCH).step(batches(1, width=10)[0])
    with pytest.raises(ShapeError, match=r"\[B, 5 \+ 5\] \(input, then target\)"):
        Trainer(coder, TrainingConfig(tokens=BATCH), BATCH).step(batches(1, width=5)[0])


def test_wrong_widths_are_refused_before_anything_changes():
    trainer = make_trainer()
    before = snapshot(trainer)
    for rows in (torch.zeros(4, D + 1), torch.zeros(D), torch.zeros(2, 2, D), torch.zeros(4, 2 * D)):
        with pytest.raises(ShapeError, match=rf"expected rows \[B, {D}\]"):
            trainer.step(rows.double())
    with pytest.raises(ShapeError, match=r"\[B, 6 \+ 5\]"):
        Trainer(transcoder(), TrainingConfig(tokens=9), 3).step(torch.zeros(3, 6).double())
    assert differences(before, snapshot(trainer)) == []


def test_rows_of_another_dtype_are_trained_in_the_coders():
    wide, low = make_trainer(dtype="float32"), make_trainer(dtype="float32")
    batch = batches(1)[0].bfloat16()
    wide.step(batch.float())
    low.step(batch)
    assert differences(snapshot(wide), snapshot(low)) == []
    assert wide.coder.dtype == torch.float32


def test_batches_are_left_as_they_were():
    trainer, batch = make_trainer(), batches(1)[0]
    copy = batch.clone()
    trainer.initialise(batch)
    for _ in range(3):
        trainer.step(batch)
    assert torch.equal(batch, copy)


@pytest.mark.parametrize(("how", "expected"), [("mean", [2.0, 1.0]), ("zeros", [0.0, 0.0])])
def test_b_dec_starts_where_the_config_says(how, expected):
    config = TrainingConfig(tokens=10, b_dec_init=how, input_scaling="none")
    trainer = Trainer(SAE(2, 4, activation=TopK(k=1), dtype="float64"), config, 2)
    trainer.initialise(torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    assert trainer.coder.b_dec.tolist() == expected


def test_rows_that_cannot_be_scaled_are_refused():
    with pytest.raises(DataError, match=r"mean norm of the first activations is 0\.0"):
        make_trainer().initialise(torch.zeros(4, D))
    with pytest.raises(DataError, match="not finite"):
        make_trainer().initialise(torch.full((4, D), math.nan))


def test_the_run_ends_at_its_last_step():
    trainer = make_trainer(n_steps=2)
    data = batches(3)
    for batch in data[:2]:
        trainer.step(batch)
    with pytest.raises(ConfigError, match="the run is done, after 2 steps; raise tokens="):
        trainer.step(data[2])
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        Trainer(SAE(D, F), TrainingConfig(), 0)


def test_the_controller_brings_l0_to_its_target():
    width, target, n_steps = 32, 32.0, 500
    for activation, sparsity in (
        (ReLU(), L1(coefficient=0.05, target_l0=target)),
        (JumpReLU(init_threshold=0.1, bandwidth=0.3), L0(coefficient=0.02, target_l0=target)),
    ):
        coder = SAE(width, 128, activation=activation, seed=0)
        config = TrainingConfig(tokens=n_steps * 32, lr=0.003, sparsity=sparsity, revive=None)
        trainer = Trainer(coder, config, 32)
        data = batches(40, width=width, rows=32, dtype=torch.float32)
        trainer.initialise(torch.cat(data))
        counts = []
        for step in range(n_steps):
            trainer.step(data[step % len(data)])
            counts.append(trainer.metrics()["l0"])
        assert counts[0] > 1.5 * target
        assert sum(counts[-50:]) / 50 == pytest.approx(target, rel=0.1), type(activation).__name__


@pytest.mark.parametrize("name", ["ReLU", "JumpReLU", "Gated"])
def test_a_wanted_l0_starts_at_six_times_as_much(name):
    activation = {"ReLU": ReLU(), "JumpReLU": JumpReLU(), "Gated": Gated()}[name]
    sparsity = L0(target_l0=4.0) if name == "JumpReLU" else L1(target_l0=4.0)
    coder = SAE(D, 64, activation=activation, dtype="float64", seed=0)
    trainer = Trainer(coder, TrainingConfig(tokens=160, sparsity=sparsity), BATCH)
    x = torch.cat(batches(256 // BATCH))
    trainer.initialise(x)
    active = trainer.coder.encode_sparse(trainer.scaling.input.apply(x))
    assert active.nnz == pytest.approx(24 * len(x), abs=1)


def test_a_threshold_that_is_given_stays_where_it_is():
    coder = SAE(D, 64, activation=JumpReLU(init_threshold=0.25), dtype="float64", seed=0)
    trainer = Trainer(coder, TrainingConfig(tokens=160, sparsity=L0(target_l0=4.0)), BATCH)
    trainer.initialise(torch.cat(batches(4)))
    assert trainer.coder.activation.threshold.unique().tolist() == [0.25]


def test_the_norms_of_a_new_unit_norm_decoder_go_into_the_encoder():
    coder = SAE(D, F, activation=ReLU(), dtype="float64", seed=0)
    before = coder.W_enc.detach().clone()
    trainer = Trainer(coder, TrainingConfig(tokens=160, sparsity=L1(), decoder="unit_norm"), BATCH)
    torch.testing.assert_close(trainer.coder.W_enc.detach(), 0.1 * before)
    norms = trainer.coder.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_threshold_follows_the_smallest_value_selected():
    trainer = make_trainer("BatchTopK", input_scaling="none")
    least, data = [], batches(3)
    for batch in data:
        coder = trainer.coder
        pre = torch.relu((batch - coder.b_dec) @ coder.W_enc + coder.b_enc).detach()
        pre = pre * coder.W_dec.detach().norm(dim=1)
        least.append(float(pre.flatten().topk(round(2.5 * BATCH)).values[-1]))
        trainer.step(batch)
    rate = BatchTopK(k=2.5).threshold_rate
    moment = 0.0
    for value in least:
        moment = (1 - rate) * moment + rate * value
    assert trainer.coder.activation.threshold == pytest.approx(moment / (1 - (1 - rate) ** 3), rel=1e-12)
    assert trainer.metrics()["threshold"] == trainer.coder.activation.threshold


def test_gradients_are_clipped_to_the_norm_asked_for():
    free, clipped = make_trainer("TopK", revive=None), make_trainer("TopK", revive=None, grad_clip=0.5)
    batch = 10 * batches(1)[0]
    for trainer in (free, clipped):
        trainer.step(batch)

    def moments(trainer):
        return torch.cat([v.flatten() for k, v in trainer.state_dict()[0].items() if k.endswith("exp_avg")])

    assert float(moments(free).norm()) > 1.0
    assert float(moments(clipped).norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)
    assert torch.allclose(moments(clipped) / moments(clipped).norm(), moments(free) / moments(free).norm())


def test_without_revival_dead_latents_get_no_gradient():
    trainer = make_trainer("ReLU", revive=None, sparsity=L1(coefficient=0.1))
    trainer.coder.b_enc.data[:4] = -100.0
    rows = trainer.coder.W_enc_rows[:4].detach().clone()
    for batch in batches(6):
        trainer.step(batch)
    assert torch.equal(trainer.coder.W_enc_rows[:4], rows)
    assert trainer.metrics()["never_fired_fraction"] == pytest.approx(4 / F)
