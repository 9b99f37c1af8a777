"""Every example resolves on the command line, and trains with the embedded model and text in place of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema.cli.main import main
from monosema.cli.presets import presets
from monosema.core.config import from_plain, load_plain, merge, to_plain
from monosema.runs.config import EvaluationOptions, RunConfig, TokenOptions
from monosema.runs.launch import launch

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = presets()
FEW = 64 * 8


def embedded(config: RunConfig) -> RunConfig:
    """The same run, small, on the embedded model: its four blocks stand for any number."""

    def nearer(names):
        return None if names is None else tuple(re.sub(r"\d+", lambda m: str(int(m[0]) % 4), name) for name in names)

    stream = replace(config.stream, hook_names=nearer(config.stream.hook_names), targets=nearer(config.stream.targets))
    training = replace(config.training, tokens=FEW)
    if training.k_start is not None:
        training = replace(training, k_start=min(training.k_start, 64))
    return replace(
        config,
        model=replace(config.model, source="builtin", dtype=None),
        tokens=TokenOptions(context_size=64, max_documents=60),
        stream=replace(stream, batch_size=128, model_batch_size=8),
        coder=replace(config.coder, d_sae=128),
        training=training,
        evaluation=EvaluationOptions(n_tokens=512),
    )


def test_every_example_of_the_checkout_has_a_name() -> None:
    assert len(EXAMPLES) >= 15
    assert {path.resolve() for path in EXAMPLES.values()} == {path.resolve() for path in FOLDER.glob("*/*.yaml")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_resolves(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", f"examples:{name}", "--print-config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for line in ("hook_names:", "activation:", "tokens:"):
        assert line in printed


@pytest.mark.parametrize("path", EXAMPLES.values(), ids=list(EXAMPLES))
def test_it_trains_on_the_embedded_model(path: Path, tmp_path: Path) -> None:
    config = embedded(from_plain(RunConfig, merge(to_plain(RunConfig()), load_plain(path))))
    if config.other_models and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch's attention in bfloat16 asks for vectors, turned off here")
    result = launch(config, tmp_path / "run", progress=False)
    assert result.n_steps == FEW // 128
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == result.n_steps
    assert lines[-1]["loss"] > 0
    loaded = ms.load(tmp_path / "run" / "coder")
    assert type(loaded.config.activation) is type(result.coder.config.activation)
    assert loaded.hook_name == result.coder.hook_name
    assert result.report is not None
    assert (result.report.models is None) == (not config.other_models)
