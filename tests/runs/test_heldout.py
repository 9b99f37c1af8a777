"""A run that is evaluated while it trains is, but for the lines about that, the run that is not: to the last bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import monosema as ms
from monosema.data import ActivationCache, ActivationStream, ArrayRows, write_cache
from monosema.runs.config import EvaluationOptions
from monosema.runs.heldout import LOSS_FIGURES, ROW_FIGURES
from monosema.training import Callback, Trainer

SITE = "blocks.1.hook_resid_post"
STEPS, BATCH = 16, 50
MEASURED = ("times", "peak_memory", "metrics", "best", "sha256")
"""Of a checkpoint's record: what differs by the clock or counts the lines about held-out rows, and the sum over all."""


class Sources:
    """Rows of each kind, new ones each time."""

    def __init__(self, model: ms.LanguageModel, text: Path, folder: Path) -> None:
        self._model, self._text, self._cache = model, folder / "text.txt", folder / "cache"
        self._text.write_text(text.read_text(encoding="utf-8")[:8_000], encoding="utf-8")
        write_cache(self.text(), self._cache, tokens=1500, shard_bytes=50_000)

    def text(self, **options: Any) -> ActivationStream:
        tokens = ms.load_tokens(str(self._text), self._model.tokenizer, 32, heldout_fraction=0.1, **options)
        return ActivationStream(self._model, tokens, SITE, batch_size=BATCH, chunk_contexts=8)

    def streamed(self) -> ActivationStream:
        return self.text(in_memory=False)

    def cache(self) -> ActivationCache:
        return ActivationCache(self._cache, BATCH, hook_names=[SITE], validation_fraction=0.2)

    def arrays(self) -> ArrayRows:
        rows = torch.randn(1600, 16, generator=torch.Generator().manual_seed(0))
        return ArrayRows(rows @ rows[:16], BATCH, validation_fraction=0.2)


@pytest.fixture(scope="module")
def sources(model: ms.LanguageModel, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(model, text_file, tmp_path_factory.mktemp("heldout"))


class Watch(Callback):
    """The state after each step, once the callbacks of the run itself have been called."""

    def __init__(self) -> None:
        self.modes: list[bool] = []
        self.thresholds: list[float | None] = []

    def on_step(self, trainer: Trainer) -> None:
        self.modes.append(trainer.coder.training)
        self.thresholds.append(trainer.coder.activation.running.value)


def lines(folder: Path, *, heldout: bool) -> list[dict[str, Any]]:
    """Those about held-out rows, or the others less what the clock says."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in read if any(name.startswith("heldout/") for name in line) == heldout]
    return [{name: value for name, value in line.items() if "second" not in name} for line in kept]


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and record of the last checkpoint."""
    last = sorted((folder / "checkpoints").glob("step_*"))[-1]
    tensors = {name: value for file in last.glob("*.safetensors") for name, value in load_file(file).items()}
    record = json.loads((last / "state.json").read_text())
    return tensors, {name: value for name, value in record.items() if name not in MEASURED}


@pytest.mark.parametrize("kind", ["text", "cache", "arrays", pytest.param("streamed", marks=pytest.mark.slow)])
def test_it_leaves_no_trace(kind: str, sources: Sources, tmp_path: Path):
    seen = {}
    for every in (0, 5):
        coder = ms.SAE(16, 48, activation=ms.BatchTopK(k=4, threshold_rate=0.1))
        config = ms.TrainingConfig(tokens=STEPS * BATCH, lr=0.01, log_every=4, checkpoint_every=8, eval_every=every)
        watch, source = Watch(), getattr(sources, kind)()
        result = ms.train(
            coder,
            source,
            config,
            out=tmp_path / str(every),
            evaluation=EvaluationOptions(n_tokens=300, n_loss_tokens=100),
            callbacks=[watch],
            progress=False,
        )
        rest = [value.tolist() for value in itertools.islice(source, 5)]
        seen[every] = (result, watch, rest)
    (plain, watched_plain, rest_plain), (evaluated, watched, rest) = seen[0], seen[5]
    for name, value in plain.coder.state_dict().items():
        assert torch.equal(value, evaluated.coder.state_dict()[name]), name
    assert lines(tmp_path / "0", heldout=False) == lines(tmp_path / "5", heldout=False)
    (tensors, record), (others, other) = checkpoint(tmp_path / "0"), checkpoint(tmp_path / "5")
    assert tensors.keys() == others.keys()
    for part in ("adam.", "statistics.", "coder.activation.running"):
        assert any(part in name for name in tensors), (part, sorted(tensors))
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name
    assert record == other
    assert rest == rest_plain, "the stream goes on from where it would have been"
    assert (watched.modes, watched.thresholds) == (watched_plain.modes, watched_plain.thresholds)
    assert all(watched.modes) and len(set(watched.thresholds)) == STEPS, "trained on, and moved at every step"

    assert lines(tmp_path / "0", heldout=True) == []
    measured = lines(tmp_path / "5", heldout=True)
    assert [line["step"] for line in measured] == [5, 10, 15]
    figures = ROW_FIGURES + (LOSS_FIGURES if kind in ("text", "streamed") else ())
    assert all(set(line) == {"step", *(f"heldout/{name}" for name in figures)} for line in measured)


def test_dropout_is_off_while_held_out_text_is_measured(sources: Sources, tmp_path: Path):
    """Its figures at the last step are those of the saved dictionary in a model without any."""
    source = sources.text()
    for block in source.model.hf.model.layers:
        block.self_attn.attention_dropout = 0.9
    modes = [each.training for each in source.model.hf.modules()]
    try:
        config = ms.TrainingConfig(tokens=10 * BATCH, eval_every=10)
        options = EvaluationOptions(n_tokens=300)
        result = ms.train(
            ms.SAE(16, 48, activation=ms.TopK(k=4)),
            source,
            config,
            out=tmp_path / "run",
            evaluation=options,
            progress=False,
        )
    finally:
        for block in source.model.hf.model.layers:
            block.self_attn.attention_dropout = 0.0
    (line,) = lines(tmp_path / "run", heldout=True)
    again = ms.evaluate(ms.load(tmp_path / "run" / "coder"), source.model, source.tokens, n_tokens=300, progress=False)
    assert {name: line[f"heldout/{name}"] for name in (*ROW_FIGURES, *LOSS_FIGURES)} == {
        name: getattr(again, name) for name in (*ROW_FIGURES, *LOSS_FIGURES)
    }
    assert [each.training for each in source.model.hf.modules()] == modes
    assert result.report is not None and result.report.ce_spliced == again.ce_spliced


def test_figures_of_rows_are_those_of_the_dictionary_as_saved(sources: Sources, tmp_path: Path):
    """Of arrays: the checkpoint written at the same step, loaded and evaluated on the rows set aside."""
    source = sources.arrays()
    config = ms.TrainingConfig(tokens=20 * BATCH, eval_every=10, checkpoint_every=10, input_scaling="expected_norm")
    ms.train(ms.SAE(16, 48, activation=ms.BatchTopK(k=4)), source, config, out=tmp_path / "run", progress=False)
    for line in lines(tmp_path / "run", heldout=True):
        saved = ms.load(tmp_path / "run" / "checkpoints" / f"step_{line['step']:09}" / "coder")
        report = ms.evaluate(saved, activations=source.validation)
        assert [line[f"heldout/{name}"] for name in ROW_FIGURES] == [
            pytest.approx(getattr(report, name), rel=1e-5) for name in ROW_FIGURES
        ]
