"""What a run says before its first step, and in which order."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import monosema as ms
from monosema.core import progress
from monosema.runs.cache import make_cache
from monosema.runs.config import (
    CacheConfig,
    CacheOptions,
    CoderOptions,
    EvaluationOptions,
    ModelOptions,
    RunConfig,
    StreamOptions,
    TokenOptions,
)
from monosema.runs.launch import launch

OPTIONS = {
    "tokens": TokenOptions(max_documents=20, context_size=32),
    "stream": StreamOptions(hook_names=("blocks.0.hook_resid_post",), batch_size=64),
}


@pytest.fixture(autouse=True)
def _off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_interactive", lambda: False)


def first_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The first line of each piece of work."""
    lines = [record.message for record in caplog.records if record.name == "monosema.progress"]
    return [line for line in lines if line.endswith(" ...") or (": " in line and line.endswith(" tok"))]


def test_every_part_of_a_run_is_said_when_it_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = RunConfig(
        model=ModelOptions(source="builtin"),
        coder=CoderOptions(d_sae=64, activation=ms.TopK(k=4)),
        training=ms.TrainingConfig(tokens=192),
        evaluation=EvaluationOptions(n_tokens=320),
        **OPTIONS,
    )
    with caplog.at_level(logging.INFO, logger="monosema"):
        launch(config, tmp_path / "run")
    said = first_lines(caplog)
    assert said[:3] == [
        "loading the model builtin ...",
        "reading and tokenizing the text ...",
        "checking the model and the text ...",
    ]
    collecting = said[3].removeprefix("collecting activations: ").removesuffix(" tok")
    assert 192 <= int(collecting) < 192 + 32, "no more than a context beyond the run"
    assert said[4:] == [
        "setting the initial values ...",
        "train: 192 tok",
        "preparing the evaluation ...",
        "means of the sites: 320 tok",
        "evaluate: 320 tok",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="monosema"):
        launch(config, tmp_path / "quiet", progress=False)
    assert first_lines(caplog) == []


def test_a_cache_never_passes_its_total(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CacheConfig(model=ModelOptions(source="builtin"), cache=CacheOptions(tokens=200), **OPTIONS)
    with caplog.at_level(logging.INFO, logger="monosema"):
        manifest = make_cache(config, tmp_path / "c")
    assert manifest is not None and 200 <= manifest.n_rows < 200 + 32
    assert f"cache {manifest.n_rows}/{manifest.n_rows} tok (100%)" in caplog.messages[-1]
