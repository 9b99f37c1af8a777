"""Code that comes with a model runs only where the caller says so, whatever files say."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import save_text, save_tiny_model

import monosema as ms
from monosema.cli.main import main
from monosema.core.errors import ConfigError, UserError
from monosema.runs.benchmarking import run_benchmark

SITE = "blocks.0.hook_mlp_out"
CODE = """\
from pathlib import Path

Path({marker!r}).write_text("x")
from transformers import LlamaConfig, LlamaForCausalLM


class EvilConfig(LlamaConfig):
    model_type = "evil"


class EvilLM(LlamaForCausalLM):
    config_class = EvilConfig
"""
CONSENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "trust_remote_code": lambda record: record.update(trust_remote_code=True),
    "both": lambda record: record.update(trust_remote_code=True, model_kwargs={"trust_remote_code": True}),
    "model_kwargs": lambda record: record.update(model_kwargs={"trust_remote_code": True}),
    "forward_kwargs": lambda record: record.update(forward_kwargs={"trust_remote_code": "true"}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, and a run on them."""
    home = tmp_path_factory.mktemp("consent")
    model = ms.load_model(str(save_tiny_model(home / "model")), device="cpu")
    save_text(home / "text.txt")
    tokens = ms.load_tokens(str(home / "text.txt"), model.tokenizer, 32, max_documents=30, heldout_fraction=0.2)
    stream = ms.ActivationStream(model, tokens, SITE, 64)
    coder = ms.SAE(16, 32, activation=ms.TopK(k=3))
    ms.train(coder, stream, ms.TrainingConfig(tokens=640), out=home / "run", evaluation=False, progress=False)
    return home


@pytest.fixture
def evil(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy whose model comes with code of its own; the code writes the file ``ran``."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    home = tmp_path / "home"
    shutil.copytree(trained, home)
    auto_map = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilLM"}
    names = {"model_type": "evil", "architectures": ["EvilLM"], "auto_map": auto_map}
    change(home / "model/config.json", lambda config: config.update(names))
    (home / "model/modeling_evil.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    record(home, lambda model: model.update(source=str(home / "model")))
    return home


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    plain = json.loads(file.read_text())
    edit(plain)
    file.write_text(json.dumps(plain))


def record(home: Path, edit: Callable[[dict[str, Any]], object], part: str = "model") -> None:
    change(home / "run/coder/cfg.json", lambda plain: edit(plain["monosema"]["metadata"][part]))


@pytest.mark.parametrize("consent", CONSENTS)
def test_a_dictionary_cannot_consent(evil: Path, tmp_path: Path, consent: str) -> None:
    record(evil, CONSENTS[consent])
    uses: list[Callable[[], object]] = [
        lambda: ms.open_session(evil / "run"),
        lambda: ms.ActivationStream.from_coder(ms.load(evil / "run")),
        lambda: run_benchmark("probe", ms.load(evil / "run"), progress=False),
    ]
    for use in uses:
        with pytest.raises(UserError, match=r"trust_remote_code"):
            use()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("verb", ["evaluate", "evaluate --replace", "features", "benchmark probe"])
def test_no_verb_obeys_a_dictionary_and_each_names_the_option(
    evil: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(evil, CONSENTS["trust_remote_code"])
    assert main([*verb.split(), str(evil / "run")]) == 2
    said = capsys.readouterr().err
    assert "comes with code of its own" in said and "--model.trust-remote-code" in said
    assert not (tmp_path / "ran").exists()


def test_the_caller_can_consent(evil: Path, tmp_path: Path) -> None:
    session = ms.open_session(evil / "run", trust_remote_code=True)
    assert type(session.model.hf).__name__ == "EvilLM"
    assert (tmp_path / "ran").exists()


def test_the_command_line_can_consent(evil: Path, tmp_path: Path) -> None:
    assert main(["features", str(evil / "run"), "--model.trust-remote-code", "--latent", "0", "--tokens", "64"]) == 0
    assert (tmp_path / "ran").exists()


def test_what_is_recorded_about_consent_is_named(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained, tmp_path / "home")
    record(tmp_path / "home", CONSENTS["trust_remote_code"])
    with caplog.at_level(logging.INFO, logger="monosema"):
        ms.open_session(tmp_path / "home/run")
    assert "model.trust_remote_code is recorded, which does not count" in caplog.text


REFUSED = [
    ("model", {"source": "https://fetch.invalid/model"}, {}),
    ("model", {"model_kwargs": {"attn_implementation": "owner/kernel"}}, {"model_kwargs": {}}),
    ("model", {"device_map": {"": "disk"}}, {"device_map": "cpu"}),
    ("tokens", {"source": "https://fetch.invalid/a.txt"}, {}),
    ("tokens", {"options": {"data_files": ["https://fetch.invalid/a.txt"]}}, {}),
]


@pytest.mark.parametrize(("part", "says", "instead"), REFUSED)
def test_a_record_that_would_fetch_write_or_run_is_refused_by_name(
    trained: Path, tmp_path: Path, part: str, says: dict[str, Any], instead: dict[str, Any]
) -> None:
    shutil.copytree(trained, tmp_path / "home")
    record(tmp_path / "home", lambda values: values.update(says), part)
    name = "data_files" if "options" in says else next(iter(says))
    with pytest.raises(ConfigError, match=rf"the dictionary says {part}\.{name} = .* say so yourself"):
        ms.open_session(tmp_path / "home/run")


def test_what_is_refused_can_be_said_by_the_caller(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "home")
    record(tmp_path / "home", lambda model: model.update(source="https://fetch.invalid", model_kwargs={"x": 1}))
    mixture = {"a": {"source": "https://fetch.invalid"}}
    record(tmp_path / "home", lambda text: text.update(mixture=mixture, when_dry="stop"), "tokens")
    with pytest.raises(ConfigError, match=r"says tokens\.mixture"):
        ms.ActivationStream.from_coder(ms.load(tmp_path / "home/run"), model=ms.load_model(str(trained / "model")))
    given = {"model": str(trained / "model"), "model_kwargs": {}, "text": str(trained / "text.txt")}
    assert ms.open_session(tmp_path / "home/run", **given).stream.layout.hook_names == (SITE,)


def test_a_dictionary_starts_no_processes_and_no_compiler(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "home")
    record(tmp_path / "home", lambda text: text.update(n_processes=64), "tokens")
    change(tmp_path / "home/run/coder/cfg.json", lambda plain: plain["monosema"]["metadata"].update(compile="default"))
    session = ms.open_session(tmp_path / "home/run")
    assert session.stream.compile is None


def test_a_model_that_a_dictionary_names_is_read_from_safetensors(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    weights = ms.load_model(str(trained / "model")).hf.state_dict()
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(weights, tmp_path / "model/pytorch_model.bin")
    shutil.copytree(trained, tmp_path / "home")
    record(tmp_path / "home", lambda model: model.update(source=str(tmp_path / "model")))
    with pytest.raises(UserError, match=r"read from safetensors alone; .*--model "):
        ms.open_session(tmp_path / "home/run")
    session = ms.open_session(tmp_path / "home/run", model=str(tmp_path / "model"))
    assert session.stream.layout.hook_names == (SITE,)


@pytest.mark.parametrize("name", ["attn_implementation", "experts_implementation"])
def test_a_model_that_a_dictionary_names_fetches_no_kernels(trained: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(trained, tmp_path / "home")
    record(tmp_path / "home", lambda model: model.update(source=str(tmp_path / "home/model")))
    change(tmp_path / "home/model/config.json", lambda config: config.update({name: "owner/kernel"}))
    with pytest.raises(UserError, match="fetch and run code"):
        ms.open_session(tmp_path / "home/run")


def test_a_run_that_was_started_with_consent_needs_it_again(trained: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained, home)
    config = (home / "run/config.yaml").read_text()
    (home / "run/config.yaml").write_text(config.replace("trust_remote_code: false", "trust_remote_code: true"))
    (home / "run/checksums.json").unlink()
    model = ms.load_model(str(trained / "model"), device="cpu")
    tokens = ms.load_tokens(str(trained / "text.txt"), model.tokenizer, 32, max_documents=30, heldout_fraction=0.2)
    stream = ms.ActivationStream(model, tokens, SITE, 64)
    coder = ms.SAE(16, 32, activation=ms.TopK(k=3))
    with pytest.raises(ConfigError, match=r"trust_remote_code: True -> False[\s\S]*give --model.trust-remote-code"):
        ms.train(coder, stream, ms.TrainingConfig(tokens=640), out=home / "run", evaluation=False, progress=False)
