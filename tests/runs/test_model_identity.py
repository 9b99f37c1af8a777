"""A run records which weights it was trained on: others at the same path are refused on resume and noted elsewhere."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import monosema as ms
from monosema.core.config import from_yaml
from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import write_cache
from monosema.runs.config import CoderOptions, ModelOptions, RunConfig, StreamOptions, TokenOptions
from monosema.runs.launch import launch

SITE = "blocks.0.hook_mlp_out"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, which a test may change."""
    return shutil.copytree(model_folder, tmp_path / "models" / "m")


def change_weights(folder: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        hf.get_input_embeddings().weight[5] += 1
    hf.save_pretrained(folder)


def config_of(folder: str, text_file: Path) -> RunConfig:
    return RunConfig(
        model=ModelOptions(source=folder),
        tokens=TokenOptions(source=str(text_file), context_size=32, heldout_fraction=0.1, max_documents=20),
        stream=StreamOptions(hook_names=(SITE,), batch_size=64),
        coder=CoderOptions(d_sae=32, activation=ms.TopK(k=3)),
        training=ms.TrainingConfig(tokens=640, checkpoint_every=5),
    )


@pytest.fixture
def run(folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the command line, which named the model by a relative path."""
    monkeypatch.chdir(folder.parent)
    launch(config_of("m", text_file), tmp_path / "run", progress=False)
    return tmp_path / "run"


def stop_early(run: Path) -> None:
    """As if the run had been killed after its checkpoint at step 5."""
    shutil.rmtree(run / "coder")
    for name in ("report.json", "summary.json", "summary.txt"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "checkpoints" / "step_000000010")


def test_path_and_fingerprint_are_recorded_wherever_the_model_is(run: Path, folder: Path) -> None:
    written = from_yaml(RunConfig, (run / "config.yaml").read_text())
    fingerprint = ms.load_model(folder).record()["fingerprint"]
    assert (written.model.source, written.model.fingerprint) == (str(folder), fingerprint)
    recorded = ms.load(run).metadata["model"]
    assert (recorded["source"], recorded["fingerprint"]) == (str(folder), fingerprint)
    session = ms.open_session(run)
    store = ms.collect_features(session.coder, session.model, session.tokens, n_tokens=320, progress=False)
    store.save(run.parent / "features")
    read = ms.FeatureStore.load(run.parent / "features").provenance
    assert (read.model, read.model_fingerprint, read.notes) == (str(folder), fingerprint, ())
    stream = session.stream
    write_cache(stream, run.parent / "cache", tokens=128)
    assert ms.ActivationCache(run.parent / "cache", 32).manifest.plan.stream["model"]["fingerprint"] == fingerprint


def test_other_weights_are_refused_on_resume(run: Path, folder: Path, text_file: Path) -> None:
    stop_early(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    original = shutil.copytree(folder, folder.parent / "original")
    change_weights(folder)
    with pytest.raises(ConfigError, match=r"model\.fingerprint: '.*' -> '.*'[\s\S]*put back those the run began with"):
        launch(config_of(str(folder), text_file), run, progress=False)
    recorded = from_yaml(RunConfig, (run / "config.yaml").read_text())
    with pytest.raises(ConfigError, match=r"weights of .* are not those recorded .*restore those weights"):
        launch(recorded, run, progress=False)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    shutil.rmtree(folder)
    shutil.copytree(original, folder)
    assert launch(recorded, run, progress=False).resumed_from == 5


def test_a_run_that_recorded_no_fingerprint_goes_on(run: Path, folder: Path, text_file: Path) -> None:
    stop_early(run)
    for path in (run / "config.yaml", *run.glob("checkpoints/*/state.json")):
        path.write_text(
            "\n".join(line for line in path.read_text().split("\n") if "fingerprint: " not in line or "null" in line)
        )
    (run / "checksums.json").unlink()
    assert "fingerprint: " not in (run / "config.yaml").read_text()
    assert launch(config_of(str(folder), text_file), run, progress=False).resumed_from == 5


def test_other_weights_are_noted_on_evaluation(run: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = ms.open_session(run)
    assert "recorded" not in caplog.text
    change_weights(folder)
    with caplog.at_level(logging.WARNING, logger="monosema"):
        session = ms.open_session(run)
    assert f"the weights of {folder} are not those recorded" in caplog.text
    note = "the coder was trained on another model (fingerprint of the weights: "
    everywhere: list[Callable[[], tuple[str, ...]]] = [
        lambda: ms.evaluate(session.coder, session.model, session.tokens, n_tokens=640, progress=False).notes,
        lambda: (
            ms.collect_features(
                session.coder, session.model, session.tokens, n_tokens=320, progress=False
            ).provenance.notes
        ),
    ]
    for notes in everywhere:
        assert any(each.startswith(note) for each in notes())
    quiet = ms.evaluate(known.coder, known.model, known.tokens, n_tokens=640, progress=False)
    assert not any(each.startswith(note) for each in quiet.notes)
    caplog.clear()
    elsewhere = shutil.copytree(folder, folder.parent / "elsewhere")
    with caplog.at_level(logging.WARNING, logger="monosema"):
        ms.open_session(run, model=str(elsewhere))
    assert "not those recorded" not in caplog.text, "another model was asked for by name"


def test_the_same_weights_elsewhere_are_the_same_model(run: Path, folder: Path) -> None:
    moved = shutil.copytree(folder, folder.parent / "moved")
    session = ms.open_session(run, model=str(moved))
    report = ms.evaluate(session.coder, session.model, session.tokens, n_tokens=640, progress=False)
    assert not any("another model" in note for note in report.notes)


def test_a_model_that_is_gone_is_named_from_any_folder(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ms.open_session(run).model.name == str(folder)
    (tmp_path / "m").mkdir()  # another thing of the name that was typed
    shutil.rmtree(folder)
    with pytest.raises(FileError, match="there is no model at") as caught:
        ms.open_session(run)
    assert str(folder) in str(caught.value)


def test_a_stream_goes_on_with_the_weights_it_began_with(model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    def made() -> ms.ActivationStream:
        return ms.ActivationStream(model, tokens, SITE, 64)

    weight = model.hf.get_input_embeddings().weight
    begun = made()
    next(begun)
    state = begun.state_dict()
    made().load_state_dict(state)
    with torch.no_grad():
        weight[5] += 1
    try:
        other = made()
        with pytest.raises(DataError, match=r"belongs to another stream; it differs in weights\.: '.*' -> '.*'"):
            other.load_state_dict(state)
        known = {key: value for key, value in state["identity"].items() if key != "weights"}
        other.load_state_dict({**state, "identity": known})
    finally:
        with torch.no_grad():
            weight[5] -= 1


def test_a_cache_is_finished_with_the_weights_it_was_begun_with(run: Path, folder: Path, tmp_path: Path) -> None:
    write_cache(ms.open_session(run).stream, tmp_path / "cache", tokens=128)
    change_weights(folder)
    (tmp_path / "cache" / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"begun with other options \(stream\.model\.fingerprint: '.*' -> '.*'\)"):
        write_cache(ms.open_session(run).stream, tmp_path / "cache", tokens=128)


def test_a_model_in_memory_has_a_fingerprint(folder: Path, tokens: ms.Tokens, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(folder)
    in_memory = ms.load_model(hf, tokenizer=tokens.tokenizer)
    coder = ms.SAE(16, 32, activation=ms.TopK(k=3))
    stream = ms.ActivationStream(in_memory, tokens, SITE, 64)
    ms.train(coder, stream, ms.TrainingConfig(tokens=640), out=tmp_path / "run", progress=False)
    plain = json.loads((tmp_path / "run" / "coder" / "cfg.json").read_text())
    assert plain["monosema"]["metadata"]["model"]["fingerprint"] == ms.load_model(folder).record()["fingerprint"]
    with torch.no_grad():
        hf.get_input_embeddings().weight[5] += 1
    again, fresh = ms.ActivationStream(in_memory, tokens, SITE, 64), ms.SAE(16, 32, activation=ms.TopK(k=3))
    with pytest.raises(ConfigError, match=r"model\.fingerprint"):
        ms.train(fresh, again, ms.TrainingConfig(tokens=640), out=tmp_path / "run", progress=False)


def test_options_take_the_fingerprint_of_a_model(folder: Path, text_file: Path, tmp_path: Path) -> None:
    config = config_of(str(folder), text_file)
    wrong = replace(config, model=replace(config.model, fingerprint="0" * 16))
    with pytest.raises(ConfigError, match=r"leave out model\.fingerprint for a new run"):
        launch(wrong, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
