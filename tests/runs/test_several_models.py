"""Runs over two models: from the config to the dictionary, and from the dictionary back to models and stream."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny_language import byte_tokenizer
from transformers import LlamaForCausalLM

import monosema as ms
from monosema.core.config import from_plain, from_yaml, to_plain
from monosema.core.errors import ConfigError
from monosema.data.chosen import choose_contexts
from monosema.runs.config import CoderOptions, EvaluationOptions, ModelOptions, RunConfig, StreamOptions, TokenOptions
from monosema.runs.describe import describe
from monosema.runs.launch import launch
from monosema.runs.session import build_models, build_tokens

SITE = "blocks.0.hook_mlp_out"
NAMES = (f"base:{SITE}", f"chat:{SITE}")


@pytest.fixture(scope="module")
def chat_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights and room for fewer tokens, as fine-tuning leaves it."""
    folder = tmp_path_factory.mktemp("chat-model")
    hf = LlamaForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight.mul_(-1.5)
    hf.config.max_position_embeddings = 48
    hf.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(model_folder: Path, chat_folder: Path, text_file: Path) -> RunConfig:
    return RunConfig(
        model=ModelOptions(source=str(model_folder)),
        other_models={"chat": ModelOptions(source=str(chat_folder))},
        tokens=TokenOptions(source=str(text_file), context_size=32, heldout_fraction=0.1),
        stream=StreamOptions(hook_names=NAMES, batch_size=64),
        coder=CoderOptions(d_sae=48, activation=ms.TopK(k=3)),
        training=ms.TrainingConfig(tokens=640, log_every=5),
    )


@pytest.fixture(scope="module")
def run_folder(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "run"
    launch(config, out, progress=False)
    return out


def test_a_run_over_two_models_writes_the_config_that_runs_it_again(run_folder: Path, config: RunConfig) -> None:
    written = from_yaml(RunConfig, (run_folder / "config.yaml").read_text())
    assert written.model.source == config.model.source
    assert len(written.other_models["chat"].fingerprint or "") == 16
    assert replace(written.other_models["chat"], fingerprint=None) == config.other_models["chat"]
    assert written.stream.hook_names == NAMES
    assert launch(written, run_folder, progress=False).resumed_from == 10, "the same config finds the run finished"
    changed = to_plain(written)
    changed["other_models"]["chat"]["dtype"] = "float64"
    with pytest.raises(ConfigError, match=r"other_models\.chat\.dtype: None -> 'float64'"):
        launch(from_plain(RunConfig, changed), run_folder, progress=False)


def test_the_dictionary_reads_both_models_and_opens_again(run_folder: Path, config: RunConfig) -> None:
    session = ms.open_session(run_folder)
    assert session.coder.hook_name == "+".join(NAMES)
    assert session.coder.d_in == 32
    assert list(session.stream.models) == ["base", "chat"]
    assert session.model is session.stream.models["base"]
    assert session.stream.models["chat"].name == config.other_models["chat"].source
    rows = next(session.stream)
    models = build_models(config)
    assert isinstance(models, dict)
    chunk_contexts = session.stream.record()["chunk_contexts"]
    for columns, model in ((slice(0, 16), models["base"]), (slice(16, 32), models["chat"])):
        alone = ms.ActivationStream(model, session.tokens, SITE, 64, chunk_contexts=chunk_contexts)
        assert torch.equal(rows[:, columns], next(alone))
    assert not torch.equal(rows[:, :16], rows[:, 16:])
    again = ms.ActivationStream.from_coder(session.coder)
    assert torch.equal(next(again), rows)


def test_the_report_has_a_score_for_each_model(run_folder: Path) -> None:
    session = ms.open_session(run_folder)
    report = ms.evaluate(session.coder, session.models, session.tokens, progress=False)
    assert json.loads((run_folder / "report.json").read_text()) == report.to_dict()
    assert report.overlap == "none"
    assert report.models is not None
    for key, model in session.stream.models.items():
        alone = ms.SAE(16, 48, activation=ms.TopK(k=3))
        alone.bind(SITE, SITE, {})
        clean = ms.evaluate(alone, model, session.tokens, progress=False).ce_clean
        assert report.models[key].ce_clean == pytest.approx(clean, rel=1e-6)
    line = next(line for line in describe(run_folder).splitlines() if line.startswith("figures"))
    assert f"ce_loss_score of chat {report.models['chat'].ce_loss_score:.4f}" in line
    assert "None" not in line


def test_the_log_keeps_the_held_out_score_of_each_model(config: RunConfig, tmp_path: Path) -> None:
    few = replace(config, training=replace(config.training, eval_every=5), evaluation=EvaluationOptions(n_tokens=256))
    launch(few, tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "heldout/fve" in line]
    assert len(held_out) == 2
    assert {"heldout/ce_loss_score/base", "heldout/kl/chat"} <= held_out[0].keys()
    assert "heldout/kl" not in held_out[0]


def test_features_are_read_from_both_models(run_folder: Path) -> None:
    session = ms.open_session(run_folder)
    store = ms.collect_features(session.coder, session.models, session.tokens, n_tokens=512, progress=False)
    names = {key: model.name for key, model in session.stream.models.items()}
    assert store.provenance.model == f"base: {names['base']}, chat: {names['chat']}"
    contexts = session.tokens.heldout.contexts[choose_contexts(session.tokens.heldout, 512)].long()
    usable = ~session.tokens.heldout.special_mask(contexts)
    rows = [model.capture(contexts, [SITE])[SITE][usable] for model in session.stream.models.values()]
    latents = session.coder.encode(torch.cat(rows, 1))
    assert torch.equal(store.numbers.count, (latents != 0).sum(0))
    assert "is not a site of the residual stream" in store.logits_note
    with pytest.raises(ConfigError, match=r"give them by name, as in \{'base': ..., 'chat': ...\}"):
        ms.collect_features(session.coder, session.model, session.tokens, progress=False)


def test_sources_are_overridden_by_name_and_the_rest_for_all(
    run_folder: Path, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="monosema"):
        session = ms.open_session(run_folder, model={"chat": str(model_folder)}, device="cpu")
    assert "models.chat.source overridden" in caplog.text
    assert "models.base.device overridden: None -> 'cpu'" in caplog.text
    assert "models.base.source" not in caplog.text
    rows = next(session.stream)
    assert torch.equal(rows[:, :16], rows[:, 16:]), "both are the same model now"
    for wrong in (str(model_folder), {"other": "x"}):
        with pytest.raises(ConfigError, match=r"several models \(base, chat\); give their sources by name"):
            ms.open_session(run_folder, model=wrong)


def test_describe_names_every_model(run_folder: Path, config: RunConfig) -> None:
    line = next(line for line in describe(run_folder).splitlines() if line.startswith("model"))
    assert f"base: {config.model.source} LlamaForCausalLM float32, chat: " in line
    assert "not recorded" not in line


def test_contexts_fit_the_shorter_model_and_names_are_checked_before_loading(config: RunConfig) -> None:
    models = build_models(config)
    assert build_tokens(TokenOptions(source=config.tokens.source), models).context_size == 48
    missing = {**to_plain(config), "model": {"source": "/nowhere"}, "stream": {"hook_names": [SITE]}}
    with pytest.raises(ConfigError, match="does not say which model it is of"):
        build_models(from_plain(RunConfig, missing))
    targets = {**missing, "stream": {"hook_names": list(NAMES), "targets": [SITE]}}
    with pytest.raises(ConfigError, match="does not say which model it is of"):
        build_models(from_plain(RunConfig, targets))


def test_other_models_are_read_strictly_and_leave_the_main_models_name() -> None:
    read = from_yaml(RunConfig, "other_models: {chat: {source: gpt2, dtype: bfloat16}, old: {}}")
    assert read.other_models["chat"] == ModelOptions(source="gpt2", dtype="bfloat16")
    assert from_plain(RunConfig, to_plain(read)) == read
    with pytest.raises(ConfigError, match=r"unknown option 'other_models\.chat\.sorce'; did you mean 'source'"):
        from_yaml(RunConfig, "other_models: {chat: {sorce: gpt2}}")
    with pytest.raises(ConfigError, match="other_models cannot have 'base'"):
        RunConfig(other_models={"base": ModelOptions()})


def test_one_models_config_has_no_other_models(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> None:
    stream = ms.ActivationStream(model, tokens, SITE, 64)
    coder = ms.SAE(16, 32, activation=ms.TopK(k=3))
    ms.train(coder, stream, ms.TrainingConfig(tokens=128), out=tmp_path / "one", evaluation=False, progress=False)
    written = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert "other_models" not in written
    assert "model" in coder.metadata
    assert "models" not in coder.metadata


def test_models_of_which_none_is_called_base_are_recorded_by_their_names(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    stream = ms.ActivationStream({"left": model, "right": model}, tokens, [f"left:{SITE}", f"right:{SITE}"], 64)
    coder = ms.SAE(32, 32, activation=ms.TopK(k=3))
    ms.train(coder, stream, ms.TrainingConfig(tokens=128), out=tmp_path / "run", evaluation=False, progress=False)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert list(written["models"]) == ["left", "right"]
    assert "model" not in written
    assert ms.open_session(tmp_path / "run").stream.models.keys() == {"left", "right"}


def test_the_command_line_takes_other_models_from_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from monosema.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("other_models: {chat: {source: from-file}}")
    monkeypatch.setenv("MONOSEMA_OTHER_MODELS__OLD__SOURCE", "from-environment")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "run.yaml", "--other-models.chat.dtype", "bfloat16", "--print-config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)["other_models"]
    assert {name: (each["source"], each["dtype"]) for name, each in printed.items()} == {
        "chat": ("from-file", "bfloat16"),
        "old": ("from-environment", None),
    }
