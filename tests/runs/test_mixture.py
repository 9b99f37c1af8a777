"""A run over a mixture of texts: from the config, recorded, and rebuilt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import monosema as ms
from monosema.core.config import from_plain, from_yaml, to_plain
from monosema.core.errors import ConfigError, UnknownNameError
from monosema.data.rebuild import recorded_options, tokens_again
from monosema.runs.check import check_run
from monosema.runs.config import CoderOptions, ModelOptions, RunConfig, StreamOptions, TokenOptions
from monosema.runs.launch import launch
from monosema.runs.session import build_tokens


@pytest.fixture(scope="module")
def config(model_folder: Path, text_file: Path) -> RunConfig:
    return from_plain(
        RunConfig,
        {
            "model": {"source": str(model_folder)},
            "tokens": {
                "context_size": 32,
                "heldout_fraction": 0.1,
                "mixture": {
                    "all": {"source": str(text_file), "weight": 3},
                    "some": {"source": str(text_file), "max_documents": 20},
                },
                "when_dry": "go_on",
            },
            "stream": {"hook_names": ["blocks.0.hook_resid_post"], "batch_size": 64},
            "coder": {"d_sae": 48, "activation": {"kind": "TopK", "k": 3}},
            "training": {"tokens": 640},
        },
    )


def test_a_run_over_a_mixture_records_it_and_opens_again(config: RunConfig, tmp_path: Path) -> None:
    launch(config, tmp_path / "run", progress=False)
    written = from_yaml(RunConfig, (tmp_path / "run" / "config.yaml").read_text())
    assert to_plain(written.tokens) == to_plain(replace(config.tokens, packing=config.tokens.packing.resolved()))
    session = ms.open_session(tmp_path / "run")
    assert session.tokens.record["mixture"]["some"]["max_documents"] == 20
    assert session.tokens.record["parts"]["all"]["n_documents"] > 20
    assert session.coder.metadata["tokens"]["text_sha256"] == session.tokens.record["text_sha256"]
    source = config.tokens.mixture["all"].source
    assert ms.open_session(tmp_path / "run", text=source).tokens.record["source"] == source
    assert launch(written, tmp_path / "run", progress=False).resumed_from == 10, "the run is found finished"


def test_a_mixture_with_text_in_memory_is_not_rebuilt(model: ms.LanguageModel, text_file: Path) -> None:
    parts = {"file": ms.TextSource(source=text_file), "list": ms.TextSource(source=["some text " * 200])}
    tokens = ms.load_tokens(ms.Mixture(parts=parts), model.tokenizer, 32)
    recorded = recorded_options({"model": {"source": "builtin"}, "tokens": tokens.record})
    with pytest.raises(ConfigError, match="trained on text in memory"):
        tokens_again(recorded["tokens"], model)


def test_every_option_of_a_source_reaches_load_tokens(model: ms.LanguageModel, tmp_path: Path, monkeypatch) -> None:
    import datasets

    asked: dict[str, object] = {}

    def load(path: str, **options: object) -> datasets.Dataset:
        asked.update(options, path=path)
        return datasets.Dataset.from_dict({"body": ["some text " * 200] * 4})

    monkeypatch.setattr(datasets, "load_dataset", load)
    options = TokenOptions(
        source="owner/name",
        context_size=32,
        heldout_fraction=0.0,
        column="body",
        max_documents=3,
        split="train",
        config_name="en",
        data_files=("a.json", "b.json"),
        data_dir="folder",
        streaming=True,
    )
    tokens = build_tokens(options, model)
    expected = {
        "path": "owner/name",
        "name": "en",
        "split": "train",
        "data_files": ["a.json", "b.json"],
        "data_dir": "folder",
        "streaming": True,
    }
    assert asked == expected
    assert tokens.record["n_documents"] == 3
    asked.clear()
    recorded = recorded_options({"model": {"source": "builtin"}, "tokens": tokens.record})["tokens"]
    again = tokens_again(recorded, model)
    assert asked == expected
    assert again.train.fingerprint == tokens.train.fingerprint
    assert from_plain(TokenOptions, recorded) == replace(options, packing=options.packing.resolved())


def test_contradictions_and_misspellings_are_found_before_anything_is_loaded() -> None:
    part = {"code": ms.TextSource(source="stdlib")}
    with pytest.raises(ConfigError, match="mixture has parts with options of their own; leave out source and split"):
        TokenOptions(mixture=part, source="my.txt", split="train")
    config = RunConfig(
        model=ModelOptions(source="builtin"),
        tokens=TokenOptions(mixture={"code": ms.TextSource(source="sdtlib")}),
        stream=StreamOptions(),
        coder=CoderOptions(),
    )
    with pytest.raises(UnknownNameError, match="unknown text 'sdtlib'; did you mean 'stdlib'"):
        check_run(config)
