"""Several coders on one pass: the same bits as alone, each with its own folder, failure and resume."""

from __future__ import annotations

import json

import pytest
import torch

import monosema as ms
from monosema.core.errors import ConfigError, ShapeError, UnknownNameError
from monosema.data import ArrayRows
from monosema.training import RunInterrupted

D, BATCH = 8, 64


def rows(n: int = 64 * 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, D, generator=generator) @ torch.randn(D, D, generator=generator)


def coders(dtype: str = "float64") -> dict:
    config = ms.TrainingConfig(tokens=BATCH * 20, lr=1e-2, log_every=5, checkpoint_every=5)
    return {
        "k2": (ms.SAE(D, 16, activation=ms.TopK(k=2), dtype=dtype), config),
        "k4": (ms.SAE(D, 24, activation=ms.BatchTopK(k=4), dtype=dtype, seed=1), config),
        "short": (
            ms.SAE(D, 16, activation=ms.TopK(k=2), dtype=dtype),
            ms.TrainingConfig(tokens=BATCH * 8, log_every=3),
        ),
    }


def weights(result) -> dict[str, torch.Tensor]:
    return dict(result.coder.named_parameters())


def same(a, b) -> bool:
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def test_each_gets_the_bits_it_would_get_alone(tmp_path):
    together = ms.train(coders(), ArrayRows(rows(), BATCH), out=tmp_path / "sweep", progress=False)
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["k2", "k4", "short", "summary.txt"]
    for name, (coder, config) in coders().items():
        alone = ms.train(coder, ArrayRows(rows(), BATCH), config, progress=False)
        assert alone.n_steps == together[name].n_steps == (8 if name == "short" else 20)
        saved = torch.cat([value.float().flatten() for value in weights(alone).values()])
        loaded = torch.cat([value.float().flatten() for value in weights(together[name]).values()])
        assert torch.equal(saved, loaded), name
        assert (
            json.loads((tmp_path / "sweep" / name / "metrics.jsonl").read_text().splitlines()[-1])["step"]
            == alone.n_steps
        )


def test_a_stopped_sweep_resumes_each_where_it_stood(tmp_path):
    whole = ms.train(coders(), ArrayRows(rows(), BATCH), progress=False)

    def stop(trainer):
        if trainer.coder.config.activation == ms.BatchTopK(k=4) and trainer.step_number == 12:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunInterrupted):
        ms.train(coders(), ArrayRows(rows(), BATCH), out=tmp_path / "s", on_step=stop, progress=False)
    (tmp_path / "s" / "k2" / "checkpoints" / "step_000000012" / "state.json").write_text("{}")  # one falls further back
    again = ms.train(coders(), ArrayRows(rows(), BATCH), out=tmp_path / "s", progress=False)
    assert (again["k2"].resumed_from, again["k4"].resumed_from) == (10, 12)
    assert all(same(whole[name], again[name]) for name in whole)


def test_one_that_stops_being_finite_stops_alone(tmp_path):
    made = coders()
    made["wild"] = (
        ms.SAE(D, 16, activation=ms.ReLU(), dtype="float64"),
        ms.TrainingConfig(tokens=BATCH * 20, lr=1e100),
    )
    found = ms.train(made, ArrayRows(rows(), BATCH), out=tmp_path / "s", progress=False)
    assert "was not finite" in found["wild"].error
    assert found["k2"].error is None
    again = ms.train(made | coders(), ArrayRows(rows(), BATCH), out=tmp_path / "s", progress=False)
    assert again["wild"].error == found["wild"].error, "given up until the file is deleted"
    assert again["k4"].error is None
    for value in weights(found["wild"]).values():
        assert bool(torch.isfinite(value).all())


def test_coders_of_different_sites_share_a_stream(model, tokens):
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    stream = ms.ActivationStream(model, tokens, sites, batch_size=32)
    width = stream.d_in // 2
    config = ms.TrainingConfig(tokens=32 * 4)
    made = {
        "first": ms.SAE(width, 32, activation=ms.TopK(k=2), hook_name=sites[0]),
        "second": ms.SAE(width, 32, activation=ms.TopK(k=2), hook_name=sites[1]),
        "both": ms.Crosscoder((width, width), 32, activation=ms.TopK(k=2)),
    }
    found = ms.train(made, stream, config, progress=False, evaluation=False)
    alone = ms.SAE(width, 32, activation=ms.TopK(k=2))
    only = ms.train(
        alone, ms.ActivationStream(model, tokens, sites[1], batch_size=32), config, progress=False, evaluation=False
    )
    assert found["second"].coder.hook_name == sites[1]
    assert torch.allclose(found["second"].coder.W_dec, only.coder.W_dec, atol=1e-4)
    assert found["both"].coder.hook_name == "+".join(sites)
    wrong = ms.SAE(width, 32, hook_name=sites[0])
    wrong.bind(sites[0], "blocks.7.hook_resid_post", {})
    with pytest.raises(UnknownNameError, match="site of the stream"):
        ms.train({"x": wrong}, stream, config)


def test_bad_sets_of_coders_are_refused():
    one = ms.SAE(D, 16)
    with pytest.raises(ConfigError, match="no coder given"):
        ms.train({}, ArrayRows(rows(), BATCH))
    with pytest.raises(ConfigError, match="becomes a folder"):
        ms.train({"../x": one}, ArrayRows(rows(), BATCH))
    with pytest.raises(ConfigError, match="given twice"):
        ms.train({"a": one, "b": one}, ArrayRows(rows(), BATCH))
    with pytest.raises(ShapeError, match="Make the coder with d_in=8"):
        ms.train({"a": ms.SAE(D + 1, 16)}, ArrayRows(rows(), BATCH), ms.TrainingConfig(tokens=BATCH))
