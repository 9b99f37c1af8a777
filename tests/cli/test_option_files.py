"""What the caller's own files may say, and what they may not."""

import os
from pathlib import Path

import pytest

from monosema.cli.main import main

TRUST = "MONOSEMA_MODEL__TRUST_REMOTE_CODE"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as done:
        main(["train", *arguments, "--print-config"])
    assert done.value.code == 0
    return capsys.readouterr().out


FILES = [
    (".env", f"{TRUST}=true\n", "model.trust_remote_code"),
    (".env", "export MONOSEMA_MODEL__MODEL_KWARGS__TRUST_REMOTE_CODE=true\n", "model.model_kwargs.trust_remote_code"),
    (".env", "MONOSEMA_MODEL__MODEL_KWARGS={code_revision: x}\n", "model.model_kwargs.code_revision"),
    (".env", "MONOSEMA_OTHER_MODELS__B={source: x, trust_remote_code: true}\n", "other_models.b.trust_remote_code"),
    ("run.yaml", "model: {trust_remote_code: true}\n", "model.trust_remote_code"),
    ("run.yaml", "model: {model_kwargs: {attn_implementation: owner/kernel}}\n", "model.model_kwargs.attn_impl"),
    ("run.yaml", "other_models: {b: {source: x, trust_remote_code: true}}\n", "other_models.b.trust_remote_code"),
    ("run.json", '{"model": {"token": "hf_x"}}', "model.token"),
]


@pytest.mark.parametrize(
    ("verb", "name", "text", "path"), [("train", *each) for each in FILES] + [("plan", *FILES[0]), ("cache", *FILES[4])]
)
def test_no_file_of_options_consents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str, text: str, path: str
) -> None:
    (tmp_path / name).write_text(text)
    given = [] if name == ".env" else ["--config", name]
    assert main([verb, *given, "--print-config"]) == 2
    said = capsys.readouterr().err
    assert f"{name} sets {path}" in said and "which no file can" in said
    assert "hf_x" not in said


def test_the_tokenizer_of_pretokenize_is_no_exception(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("tokenizer: {trust_remote_code: true}\n")
    assert main(["pretokenize", "--config", "a.yaml", "--print-config"]) == 2
    assert "--tokenizer.trust-remote-code on the command line" in capsys.readouterr().err


def test_the_command_line_and_the_environment_consent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text("model: {trust_remote_code: true, source: x}\n")
    assert "trust_remote_code: true" in printed(capsys, "--config", "run.yaml", "--model.trust-remote-code")
    assert "trust_remote_code: true" in printed(capsys, "--model.trust-remote-code")
    monkeypatch.setenv(TRUST, "true")
    assert "trust_remote_code: true" in printed(capsys, "--config", "run.yaml")
    assert "trust_remote_code: true" in printed(capsys)


def test_an_environment_variable_beside_the_same_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("MONOSEMA_MODEL__MODEL_KWARGS__CODE_REVISION=x\n")
    monkeypatch.setenv("MONOSEMA_MODEL__MODEL_KWARGS__CODE_REVISION", "x")
    assert "code_revision: x" in printed(capsys)


def test_files_say_what_model_kwargs_need_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {model_kwargs: {attn_implementation: eager}, trust_remote_code: false}\n"
    )
    assert "attn_implementation: eager" in printed(capsys, "--config", "run.yaml")


def test_that_dotenv_was_read_is_logged_without_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HF_ENDPOINT", "HF_HOME_OF_FILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MONOSEMA_TRAINING__SEED", "7")
    (tmp_path / ".env").write_text(
        "MONOSEMA_TRAINING__LR=0.25\nMONOSEMA_TRAINING__SEED=3\nHF_TOKEN=hf_value\nHF_ENDPOINT=https://fetch.invalid\n"
        "OTHER=1\n"
    )
    with pytest.raises(SystemExit):
        main(["train", "--print-config"])
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if ".env" in line]
    assert lines == [f"read {tmp_path / '.env'}: used MONOSEMA_TRAINING__LR, HF_TOKEN"]
    assert "lr: 0.25" in said.out and "seed: 7" in said.out
    assert "hf_value" not in said.err + said.out
    assert os.environ["HF_TOKEN"] == "hf_value"
    assert "HF_ENDPOINT" not in os.environ
    monkeypatch.delenv("HF_TOKEN")


def test_secrets_of_the_environment_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    (tmp_path / ".env").write_text("HF_TOKEN=theirs\n")
    with pytest.raises(SystemExit):
        main(["train", "--print-config"])
    assert os.environ["HF_TOKEN"] == "mine"
