"""Runs with tokens scaled by their own size: saved, read back, resumed, and set up from a config."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import monosema as ms
from monosema.core.config import from_yaml
from monosema.core.errors import ConfigError
from monosema.runs.config import RunConfig, StreamOptions
from monosema.runs.describe import describe
from monosema.runs.session import build_coder
from monosema.training import Trainer

SITE = "blocks.1.hook_resid_post"
CONFIG = ms.TrainingConfig(tokens=2000, checkpoint_every=5, log_every=5, input_scaling="constant_norm")


def stream_of(model: ms.LanguageModel, tokens: ms.Tokens) -> ms.ActivationStream:
    return ms.ActivationStream(model, tokens, SITE, batch_size=100)


def coder_of(**options: object) -> ms.SparseCoder:
    return ms.SAE(16, 48, activation=ms.BatchTopK(k=4), **options)


def test_a_run_saves_returns_and_evaluates_the_scaling(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    mine = coder_of()
    result = ms.train(mine, stream_of(model, tokens), CONFIG, out=tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "coder" / "cfg.json").read_text())
    assert saved["normalize_activations"] == "constant_norm_rescale"
    x = next(iter(stream_of(model, tokens)))
    for coder in (result.coder, mine, ms.load(tmp_path / "run" / "checkpoints" / "step_000000020")):
        assert coder.config.token_scaling == "constant_norm"
        torch.testing.assert_close(coder(x), result.coder(x))
        torch.testing.assert_close(coder(9 * x), 9 * coder(x))
    assert "constant_norm of each token" in describe(tmp_path / "run")
    assert result.report is not None
    again = ms.evaluate(result.coder, model, tokens, progress=False)
    assert again.fve == result.report.fve
    direct = ms.evaluate(result.coder, activations=x).fve
    error = (x - result.coder(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert direct == pytest.approx(1 - float(error), rel=1e-5)


@pytest.mark.parametrize("kind", ["constant_norm", "layer_norm"])
def test_a_crashed_run_resumes_to_the_same_bits(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path, kind: str
) -> None:
    config, whole, crashed = replace(CONFIG, input_scaling=kind), tmp_path / "whole", tmp_path / "crashed"

    def crash(trainer: Trainer) -> None:
        if trainer.step_number == 12:
            raise RuntimeError("crash")

    ms.train(coder_of(), stream_of(model, tokens), config, out=whole)
    mine = coder_of()
    with pytest.raises(RuntimeError, match="crash"):
        ms.train(mine, stream_of(model, tokens), config, out=crashed, on_step=crash)
    result = ms.train(mine, stream_of(model, tokens), config, out=crashed)  # the same object once more
    assert result.resumed_from == 10
    for name in ("coder/sae_weights.safetensors", "coder/cfg.json", "metrics.jsonl", "config.yaml"):
        assert (crashed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_of_another_scaling_is_another_run(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> None:
    plain, out = replace(CONFIG, input_scaling="none"), tmp_path / "run"
    ms.train(coder_of(token_scaling="layer_norm"), stream_of(model, tokens), plain, out=out, evaluation=False)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["coder"]["token_scaling"], config["training"]["input_scaling"]) == ("layer_norm", "none")
    with pytest.raises(ConfigError, match=r"coder\.token_scaling: 'layer_norm' -> 'none'"):
        ms.train(coder_of(), stream_of(model, tokens), plain, out=out)
    with pytest.raises(ConfigError, match=r"training\.input_scaling: 'none' -> 'layer_norm'"):
        ms.train(coder_of(), stream_of(model, tokens), replace(CONFIG, input_scaling="layer_norm"), out=out)


@pytest.mark.parametrize("sites", ["sae", "transcoder", "crosscoder", "cross_layer"])
def test_a_config_makes_the_same_coder(model: ms.LanguageModel, tokens: ms.Tokens, sites: str) -> None:
    read, write = ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"), ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
    hooks = {
        "sae": StreamOptions(hook_names=read[:1]),
        "transcoder": StreamOptions(hook_names=read[:1], targets=write[:1]),
        "crosscoder": StreamOptions(hook_names=read),
        "cross_layer": StreamOptions(hook_names=read, targets=write),
    }[sites]
    stream = ms.ActivationStream(model, tokens, list(hooks.hook_names), targets=hooks.targets, batch_size=50)
    config = from_yaml(RunConfig, "coder: {token_scaling: layer_norm, d_sae: 8, activation: {kind: ReLU}}")
    coder = build_coder(replace(config, stream=hooks), stream)
    assert coder.config.token_scaling == "layer_norm"
    assert all(part.coder.config.token_scaling == "layer_norm" for part in coder.parts)
    named = from_yaml(RunConfig, "training: {input_scaling: layer_norm, tokens: 100}")
    fresh = build_coder(replace(config, stream=hooks, coder=replace(config.coder, token_scaling="none")), stream)
    result = ms.train(fresh, stream, named.training, evaluation=False)
    assert result.coder.config.token_scaling == "layer_norm"
    rows = next(iter(stream))
    assert bool(result.coder(rows[:, : coder.d_in]).isfinite().all())
