"""Stopped and gone on: with every policy, source and variant, the bits and lines of a run left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import monosema as ms
from monosema.data import ArrayRows, write_cache

D, BATCH, STEPS = 8, 32, 12
ROWS = torch.randn(640, 2 * D, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    2 * D, 2 * D, generator=torch.Generator().manual_seed(1)
)
SITE = "blocks.1.hook_resid_post"
RESAMPLE = ms.Resample(every_tokens=3 * BATCH, dead_after_tokens=BATCH, n_candidates=64)


def sae(activation: Any = None) -> ms.SparseCoder:
    return ms.SAE(D, 32, activation=activation or ms.BatchTopK(k=2, threshold_rate=0.1))


Case = tuple[Callable[[], Any], dict[str, Any]]
POLICIES: dict[str, Case] = {
    "AuxK": (sae, {"revive": ms.AuxK(dead_after_tokens=2 * BATCH)}),
    "ghost gradients": (lambda: sae(ms.ReLU()), {"revive": ms.GhostGradients(dead_after_tokens=BATCH)}),
    "pre-activation loss": (lambda: sae(ms.JumpReLU()), {"revive": ms.PreActivationLoss()}),
    "resampling": (lambda: sae(ms.TopK(k=2)), {"revive": RESAMPLE}),
    "p-annealing": (lambda: sae(ms.ReLU()), {"sparsity": ms.Lp(p_end=0.5, n_updates=3), "revive": None}),
    "wanted L0": (lambda: sae(ms.JumpReLU()), {"sparsity": ms.L0(target_l0=3.0)}),
    "k-annealing": (sae, {"k_start": 6, "k_anneal_fraction": 0.8}),
    "noise": (sae, {"pre_noise": 0.1}),
    "gradient accumulation": (sae, {"gradient_accumulation": 3, "grad_clip": 1.0}),
    "restarts": (sae, {"lr_schedule": "cosine_restarts", "lr_cycles": 3, "warmup_fraction": 0.1}),
    "levels": (sae, {"levels": ms.Matryoshka(widths=(8, 32))}),
    "whitening": (lambda: sae(ms.TopK(k=2)), {"input_scaling": "whitening"}),
    "token scaling": (sae, {"input_scaling": "layer_norm"}),
    "Gated": (lambda: sae(ms.Gated()), {}),
    "bfloat16": (sae, {"autocast": "bfloat16"}),
    "fine-tuning of scales": (sae, {"finetuning": ms.FineTuning(tokens=6 * BATCH, weights="scale")}),
    "fine-tuning of all": (sae, {"finetuning": ms.FineTuning(tokens=6 * BATCH, weights="all")}),
    "transcoder": (lambda: ms.Transcoder(D, D, 32, activation=ms.TopK(k=2), skip=True), {}),
    "cross-layer transcoder": (lambda: ms.CLT((4, 4), (4, 4), 16, activation=ms.BatchTopK(k=2)), {}),
}


def config(**options: Any) -> ms.TrainingConfig:
    usual = {"tokens": STEPS * BATCH, "lr": 0.01, "log_every": 1, "checkpoint_every": 5, "keep_checkpoints": 99}
    return ms.TrainingConfig(**{**usual, **options})


def results(out: Path) -> dict[str, bytes]:
    """Weights, moments, thresholds, statistics, metrics."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix in (".safetensors", ".jsonl") or path.name == "cfg.json"
    }


def check(out: Path, train: Callable[..., Any], stops: tuple[int, ...]) -> None:
    """``train(out, on_step)`` crashed at each of ``stops``, beside one left alone."""
    train(out / "alone", None)
    for stop in stops:

        def crash(trainer: ms.Trainer, stop: int = stop) -> None:
            if trainer.step_number == stop:
                raise RuntimeError("crash")

        with pytest.raises(RuntimeError, match="crash"):
            train(out / "stopped", crash)
    train(out / "stopped", None)
    expected, found = results(out / "alone"), results(out / "stopped")
    assert [name for name in {**expected, **found} if expected.get(name) != found.get(name)] == []
    assert any(name.endswith("metrics.jsonl") for name in found)


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy(name: str, tmp_path: Path) -> None:
    make, options = POLICIES[name]

    def train(out: Path, on_step: Any) -> None:
        coder = make()
        reads, writes = ROWS[:, :D], ROWS[:, D:]
        source = ArrayRows(reads, BATCH, epochs=3)
        if name == "transcoder":
            source = ArrayRows(reads, BATCH, targets=writes)
        elif name == "cross-layer transcoder":
            sites = (
                {f"{side}{n}": rows[:, 4 * n : 4 * n + 4] for n in (0, 1)}
                for side, rows in (("in", reads), ("out", writes))
            )
            source = ArrayRows(next(sites), BATCH, targets=next(sites))
        ms.train(coder, source, config(**options), out=out, on_step=on_step, evaluation=False, progress=False)

    check(tmp_path, train, (8,))


def test_another_optimiser(tmp_path: Path) -> None:
    def train(out: Path, on_step: Any) -> None:
        source, own = ArrayRows(ROWS[:, :D], BATCH), torch.optim.NAdam
        ms.train(sae(), source, config(), out=out, optimizer=own, on_step=on_step, evaluation=False, progress=False)

    check(tmp_path, train, (8,))


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_stream(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path, prefetch: bool) -> None:
    def train(out: Path, on_step: Any) -> None:
        stream = ms.ActivationStream(model, tokens, SITE, batch_size=BATCH, chunk_contexts=4, prefetch=prefetch)
        coder = ms.SAE(16, 32, activation=ms.BatchTopK(k=2))
        ms.train(coder, stream, config(), out=out, on_step=on_step, evaluation=False, progress=False)

    check(tmp_path, train, (7, 11))


def test_resampling_by_the_models_loss(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> None:
    revive = ms.Resample(every_tokens=3 * BATCH, dead_after_tokens=BATCH, by="model_loss", n_contexts=4)

    def train(out: Path, on_step: Any) -> None:
        stream = ms.ActivationStream(model, tokens, SITE, batch_size=BATCH, chunk_contexts=4)
        coder = ms.SAE(16, 32, activation=ms.TopK(k=2))
        ms.train(coder, stream, config(revive=revive), out=out, on_step=on_step, evaluation=False, progress=False)

    check(tmp_path, train, (8,))


def test_a_cache(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> None:
    stream = ms.ActivationStream(model, tokens, SITE, batch_size=BATCH, chunk_contexts=12)
    write_cache(stream, tmp_path / "cache", tokens=400, shard_bytes=2000)

    def train(out: Path, on_step: Any) -> None:
        rows = ms.ActivationCache(tmp_path / "cache", BATCH, epochs=4, mix_bytes=1)
        coder = ms.SAE(16, 32, activation=ms.BatchTopK(k=2))
        ms.train(coder, rows, config(), out=out, on_step=on_step, evaluation=False, progress=False)

    check(tmp_path, train, (7, 11))


def test_several_coders_on_one_stream(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> None:
    def train(out: Path, on_step: Any) -> None:
        stream = ms.ActivationStream(model, tokens, SITE, batch_size=BATCH, chunk_contexts=4)
        coders = {
            "aux": (ms.SAE(16, 32, activation=ms.BatchTopK(k=2)), config(checkpoint_every=3)),
            "jump": (ms.SAE(16, 32, activation=ms.JumpReLU()), config(revive=RESAMPLE)),
            "short": (ms.SAE(16, 32, activation=ms.TopK(k=2)), config(tokens=6 * BATCH)),
        }
        ms.train(coders, stream, out=out, on_step=on_step, evaluation=False, progress=False)

    check(tmp_path, train, (5, 11))
