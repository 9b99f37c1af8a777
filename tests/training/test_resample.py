"""Resampling: the presets' values as their sources have them, and what a rule does in a run."""

from __future__ import annotations

import logging

import pytest
import torch
from training_tiny import BATCH, D, batches, make_trainer

from monosema.coders import SAE, ReLU
from monosema.core.config import from_plain, to_plain
from monosema.core.errors import ConfigError
from monosema.training import Resample, TrainingConfig
from monosema.training.resample import Candidates, replace_latents_
from monosema.training.resample_presets import RESAMPLE_PRESETS
from monosema.training.revive import dead_after, is_resampling_step, resample_every, rewarm_steps


def test_without_a_preset_the_rule_follows_the_run() -> None:
    policy, n = Resample(), 1_600
    assert (resample_every(policy, n), dead_after(policy, n)) == (200, 100)
    rule = policy.rule
    assert (rule.by, rule.power, rule.scale, rule.n_candidates, rule.n_contexts) == ("error", 2, 0.2, 16_384, 64)
    assert rewarm_steps(policy, 1000, 8) == 20


@pytest.mark.parametrize(
    ("name", "batch", "expected"),
    [
        # steps between, at most, steps silent, by, power, candidates, contexts, one each, scale, re-warm steps, floor
        ("anthropic", 8192, (25_000, 4, 12_500, "error", 2, 819_200, None, False, 0.2, 0, 0)),
        ("transcoder_circuits", 4096, (1000, None, 1000, "model_loss", 1, None, 32 * 1024, True, 0.2, 10_000, 1e-4)),
        ("drrik", 256, (10_000, None, 100, "error", 2, 256, None, False, 0.2, 0, 0)),
        ("dictionary_learning", 8192, (25_000, None, 12_500, "error", 0.5, 8192, None, False, 0.2, 1000, 0)),
    ],
)
def test_a_preset_has_its_sources_values(name: str, batch: int, expected: tuple) -> None:
    policy = Resample(preset=name)
    rule = policy.rule
    every, at_most, silent, by, power, candidates, contexts, one_each, scale, rewarm, floor = expected
    assert resample_every(policy, 10) == every * batch
    assert dead_after(policy, 10) == silent * batch
    assert rewarm_steps(policy, 10, batch) == rewarm
    assert (rule.n_times, rule.by, rule.power, rule.scale, rule.rewarm_floor) == (at_most, by, power, scale, floor)
    assert (rule.n_candidates == candidates) if by == "error" else (rule.n_contexts == contexts)
    assert rule.one_per_context == one_each
    assert rule.dead_below_density is None
    config = TrainingConfig(revive=policy)
    assert from_plain(TrainingConfig, to_plain(config)) == config


def test_every_preset_is_tested_above() -> None:
    (mark,) = test_a_preset_has_its_sources_values.pytestmark
    assert {row[0] for row in mark.args[1]} == set(RESAMPLE_PRESETS)


def test_what_is_given_stands_over_the_preset() -> None:
    policy = Resample(preset="drrik", every_tokens=1000, scale=0.5)
    assert (policy.rule.every_tokens, policy.rule.scale, policy.rule.n_candidates) == (1000, 0.5, 256)
    by_rate = Resample(preset="anthropic", dead_below_density=1e-5, rewarm_fraction=0.1).rule
    assert (by_rate.dead_after_tokens, by_rate.dead_below_density) == (None, 1e-5)
    assert rewarm_steps(Resample(preset="anthropic", rewarm_fraction=0.1), 100, 8) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dead_after_tokens": 5, "dead_below_density": 0.1}, "dead_after_tokens or dead_below_density, not both"),
        ({"rewarm_tokens": 5, "rewarm_fraction": 0.1}, "rewarm_tokens or rewarm_fraction, not both"),
        ({"n_times": 0}, "n_times must be at least 1"),
        ({"power": 0}, "power must be positive"),
        ({"rewarm_tokens": -1}, "rewarm_tokens must not be negative"),
        ({"rewarm_floor": 1.5}, "rewarm_floor must be between 0 and 1"),
    ],
)
def test_bad_options_name_the_fix(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Resample(**options)


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(ConfigError, match="preset: expected 'anthropic' or 'transcoder_circuits'"):
        from_plain(TrainingConfig, {"revive": {"kind": "Resample", "preset": "antropic"}})
    policy = Resample()
    object.__setattr__(policy, "preset", "antropic")  # where types are not checked, as they are in tests
    with pytest.raises(ConfigError, match="preset must be one of anthropic, transcoder_circuits, drrik, dictionary_l"):
        policy.__post_init__()


def test_when_latents_are_resampled() -> None:
    policy = Resample(every_tokens=20, n_times=2)
    steps = [step for step in range(1, 13) if is_resampling_step(policy, step, 12, 120, 10)]
    assert steps == [2, 4]
    every = [step for step in range(1, 13) if is_resampling_step(Resample(every_tokens=20), step, 12, 120, 10)]
    assert every == [2, 4, 6, 8]  # none in the last quarter


def test_candidates_are_drawn_by_the_power_of_their_loss() -> None:
    coder = SAE(2, 4000, activation=ReLU(), b_dec="none", dtype="float64")
    coder.requires_grad_(False)
    axes = torch.eye(2, dtype=torch.float64)
    candidates = Candidates(axes, axes, torch.tensor([1.0, 3.0], dtype=torch.float64))
    for power, share in ((2.0, 0.9), (1.0, 0.75), (0.5, 3**0.5 / (1 + 3**0.5))):
        replace_latents_(coder, torch.arange(4000), candidates, 0.2, torch.Generator().manual_seed(0), power=power)
        drawn_second = (coder.W_enc_rows[:, 1] > 0).double().mean().item()
        assert drawn_second == pytest.approx(share, abs=0.03)


def test_the_learning_rate_rises_from_the_presets_floor() -> None:
    policy = Resample(preset="transcoder_circuits", by="error", every_tokens=4 * BATCH, rewarm_tokens=4 * BATCH)
    trainer = make_trainer("TopK", n_steps=40, revive=policy, lr_schedule="constant", warmup_fraction=0.0)
    rates = []
    trainer.statistics.tokens_since_fired.fill_(10**9)
    for batch in batches(9, D):
        rates.append(trainer._lr())
        trainer.step(batch)
    assert trainer.n_resampled > 0
    assert rates[3] == pytest.approx(0.01)
    assert rates[4:9] == pytest.approx([0.01 * (1e-4 + (1 - 1e-4) * share / 4) for share in range(5)])


def test_a_run_too_short_to_resample_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="monosema"):
        make_trainer("TopK", revive=Resample(preset="anthropic"))
    assert "no latent will be resampled: every_tokens=204,800,000 is more than three quarters" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="monosema"):
        make_trainer("TopK", revive=Resample(preset="anthropic", every_tokens=BATCH))
    assert caplog.text == ""
