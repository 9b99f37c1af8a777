"""Training from arrays of several sites: the same as from one array side by side, kept, resumed, measured."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import monosema as ms
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.data import ArrayRows
from monosema.training import RunInterrupted

BATCH, N = 64, 64 * 15
READS, WRITES = ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"), ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
CONFIG = ms.TrainingConfig(tokens=BATCH * 10, lr=1e-2, log_every=5, checkpoint_every=5, eval_every=5)
OPTIONS = {"batch_size": BATCH, "validation_fraction": 0.2, "seed": 1}
KINDS = ("crosscoder", "transcoder", "cross-layer transcoder")


def array(seed: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, width, generator=generator) @ torch.randn(width, width, generator=generator)


X, Y, U, V = (array(seed, width) for seed, width in enumerate((6, 8, 6, 8)))


def make(kind: str):
    """The coder, the arrays it is trained from, and the same rows as one array."""
    activation = ms.TopK(k=3)
    if kind == "crosscoder":
        coder = ms.Crosscoder((6, 8), 24, activation=activation, dtype="float64")
        return coder, {READS[0]: X, READS[1]: Y}, None, [X, Y]
    if kind == "transcoder":
        return ms.Transcoder(6, 8, 24, activation=activation, skip=True, dtype="float64"), X, Y, [X, Y]
    coder = ms.CLT((6, 8), (6, 8), 24, activation=activation, dtype="float64")
    return coder, dict(zip(READS, (X, Y), strict=True)), dict(zip(WRITES, (U, V), strict=True)), [X, Y, U, V]


def weights(coder) -> dict[str, torch.Tensor]:
    return dict(coder.named_parameters())


def same(a, b) -> bool:
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_is_trained_evaluated_and_saved_from_arrays(kind: str, tmp_path: Path) -> None:
    coder, source, targets, parts = make(kind)
    result = ms.train(
        coder, source, CONFIG, out=tmp_path / "run", evaluation=True, progress=False, targets=targets, **OPTIONS
    )
    by_hand = make(kind)[0]
    side_by_side = ArrayRows(torch.cat(parts, 1), **OPTIONS)
    rows = ArrayRows(source, targets=targets, **OPTIONS)
    by_hand.bind(rows.layout.read_name, rows.layout.write_name, {})
    trainer = ms.Trainer(by_hand, CONFIG, BATCH)
    trainer.initialise(side_by_side.preview(16_384))
    for _ in range(10):
        trainer.step(next(side_by_side))
    expected = trainer.inference_coder()
    assert (result.coder.hook_name, result.coder.hook_name_out) == (rows.layout.read_name, rows.layout.write_name)
    for name, value in weights(result.coder).items():
        assert torch.allclose(value.double(), weights(expected)[name], rtol=1e-6, atol=1e-6), name
    assert result.report is not None
    assert result.report.n_tokens == N // 5
    assert result.report.to_dict() == ms.evaluate(result.coder, activations=side_by_side.validation).to_dict()
    lines = [line for line in logged(tmp_path / "run") if "heldout/fve" in line]
    assert [line["step"] for line in lines] == [5, 10]
    assert lines[-1]["heldout/fve"] == pytest.approx(result.report.fve, rel=1e-6)
    names = {"crosscoder": READS, "cross-layer transcoder": WRITES}.get(kind)
    assert names is None or tuple(result.report.fve_per_site or ()) == names
    assert same(result.coder, ms.load(tmp_path / "run" / "coder"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_from_arrays_resumes_bit_for_bit_and_only_on_the_same_rows(kind: str, tmp_path: Path) -> None:
    def train(change: int | None = None, on_step=None, out: Path | None = tmp_path / "run"):
        coder, source, targets, _ = make(kind)
        if change is not None:
            last = targets if targets is not None else source
            broken = Y.clone() if isinstance(last, torch.Tensor) else next(reversed(last.values())).clone()
            broken[change, 3] += 0.5
            if not isinstance(last, dict):
                targets = broken
            else:
                last[next(reversed(last))] = broken
        return ms.train(coder, source, CONFIG, out=out, on_step=on_step, progress=False, targets=targets, **OPTIONS)

    def stop(trainer) -> None:
        if trainer.step_number == 7:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(out=None)
    with pytest.raises(RunInterrupted):
        train(on_step=stop)
    with pytest.raises(ConfigError, match="array_digest"):
        train(change=N // 2)
    again = train()
    assert again.resumed_from == 7
    assert all(
        torch.equal(value.float(), weights(again.coder)[name].float()) for name, value in weights(whole.coder).items()
    )
    with pytest.raises(ConfigError, match="array_digest"):
        train(change=N // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_side_by_side_are_split_by_the_coders_own_widths(kind: str) -> None:
    config = ms.TrainingConfig(tokens=BATCH * 10, lr=1e-2)
    coder, source, targets, parts = make(kind)
    from_sites = ms.train(coder, source, config, progress=False, targets=targets, batch_size=BATCH)
    rows = torch.cat(parts, 1)
    from_one = ms.train(make(kind)[0], rows, config, progress=False, batch_size=BATCH)
    assert same(from_sites.coder, from_one.coder)
    loaded = ms.train(
        make(kind)[0], [part.numpy() for part in rows.split(50)], config, progress=False, batch_size=BATCH
    )
    assert ms.evaluate(loaded.coder, activations=rows).n_tokens == N


def test_mapped_files_of_several_sites_train(tmp_path: Path) -> None:
    for name, rows in (("x", X), ("y", Y)):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
    config = ms.TrainingConfig(tokens=BATCH * 10, lr=1e-2)
    files = {READS[0]: tmp_path / "x.npy", READS[1]: str(tmp_path / "y.npy")}
    found = ms.train(make("crosscoder")[0], files, config, progress=False, batch_size=BATCH)
    memory = ms.train(make("crosscoder")[0], {READS[0]: X, READS[1]: Y}, config, progress=False, batch_size=BATCH)
    assert same(found.coder, memory.coder)


def test_several_coders_share_the_arrays_of_several_sites() -> None:
    config = ms.TrainingConfig(tokens=BATCH * 5, lr=1e-2)
    made = {
        "second": ms.SAE(8, 24, activation=ms.TopK(k=3), hook_name=READS[1]),
        "across": ms.Transcoder(6, 8, 24, activation=ms.TopK(k=3), hook_name=READS[0], hook_name_out=READS[1]),
        "both": ms.Crosscoder((6, 8), 24, activation=ms.TopK(k=3)),
    }
    found = ms.train(made, {READS[0]: X, READS[1]: Y}, config, progress=False, **OPTIONS)
    alone = ms.train(ms.SAE(8, 24, activation=ms.TopK(k=3)), {READS[1]: Y}, config, progress=False, **OPTIONS)
    assert same(found["second"].coder, alone.coder)
    assert alone.coder.hook_name == READS[1]
    assert (found["across"].coder.hook_name, found["across"].coder.hook_name_out) == READS
    assert found["both"].coder.hook_name == "+".join(READS)
    assert found["second"].report is not None
    assert alone.report is not None
    assert found["second"].report.fve == alone.report.fve


def test_a_named_coder_keeps_its_name_on_rows_without_one(tmp_path: Path) -> None:
    config = ms.TrainingConfig(tokens=BATCH * 2)
    named = ms.train(ms.SAE(6, 24, hook_name=READS[0]), X, config, out=tmp_path / "a", progress=False, batch_size=BATCH)
    assert (named.coder.hook_name, named.coder.hook_name_out) == (READS[0], READS[0])
    further = ms.train(ms.load(tmp_path / "a"), Y[:, :6], config, progress=False, batch_size=BATCH)
    assert further.coder.hook_name == READS[0]
    plain = ms.train(ms.SAE(6, 24), X, config, progress=False, batch_size=BATCH)
    assert plain.coder.hook_name == "input"


def test_arrays_that_do_not_fit_the_coder_are_refused() -> None:
    config = ms.TrainingConfig(tokens=BATCH)
    with pytest.raises(DataError, match=f"'a' has {N} rows, 'b' has {N - 1}"):
        ms.train(ms.Crosscoder((6, 8), 24), {"a": X, "b": Y[1:]}, config, batch_size=BATCH)
    with pytest.raises(ShapeError, match=r"sites read are \(6, 8\) wide, the source's \[8, 6\]"):
        ms.train(ms.Crosscoder((6, 8), 24), {"b": Y, "a": X}, config, batch_size=BATCH)
    with pytest.raises(ConfigError, match="name what it writes with targets="):
        ms.train(ms.Transcoder(6, 6, 24), (X, U), config, batch_size=BATCH)
    with pytest.raises(ConfigError, match="name what it writes with targets="):
        ms.train(make("cross-layer transcoder")[0], dict(zip(READS, (X, Y), strict=True)), config, batch_size=BATCH)
    with pytest.raises(ConfigError, match="targets= goes with arrays"):
        ms.train(ms.Transcoder(6, 8, 24), [X], config, batch_size=BATCH, targets=[Y])
