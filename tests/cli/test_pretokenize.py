"""``monosema pretokenize``, and training on what it wrote."""

from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema.cli.main import main

TEXT = ["--tokens.context-size", "32", "--tokens.max-documents", "25"]
TRAIN = [
    "--stream.hook-names", "blocks.1.hook_resid_post", "--stream.batch-size", "64", "--coder.d-sae", "32",
    "--coder.activation", "TopK", "--coder.activation.k", "4", "--training.tokens", "640",
    "--evaluation.n-tokens", "200", "--quiet",
]  # fmt: skip


def test_the_command_writes_tokens_that_train_to_the_same_bits(
    tmp_path: Path, model_folder: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--tokens.source", str(text_file), *TEXT]
    write = ["pretokenize", "--tokenizer.source", str(model_folder), *source, "--out", str(tmp_path / "t"), "--quiet"]
    assert main(write) == 0
    assert main(write) == 0  # again: everything is there
    tokens = ms.load_tokens(tmp_path / "t", None)
    assert f"{tokens.train.n_tokens:,} training and {tokens.heldout.n_tokens:,} held-out" in capsys.readouterr().out
    model = ["--model.source", str(model_folder)]
    assert main(["train", *model, *source, *TRAIN, "--out", str(tmp_path / "text")]) == 0
    stored = ["--tokens.source", str(tmp_path / "t")]  # its context_size is the folder's
    assert main(["train", *model, *stored, *TRAIN, "--out", str(tmp_path / "stored")]) == 0
    one, other = ms.load(tmp_path / "text"), ms.load(tmp_path / "stored")
    assert torch.equal(one.W_dec, other.W_dec)
    assert one.metadata["tokens"]["fingerprint"] == other.metadata["tokens"]["fingerprint"]
    session = ms.open_session(tmp_path / "stored")
    assert session.tokens.heldout.fingerprint == tokens.heldout.fingerprint


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "t"), "--quiet"]
    for arguments, message in (
        (["--private"], "name it with --push"),
        (["--tokens.source", "stdlb"], "did you mean 'stdlib'"),
        (["--tokenizer.source", "builtn"], "did you mean 'builtin'"),
    ):
        assert main(["pretokenize", *out, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["pretokenize", *out, "--tokens.exclude-special-tokens", "False"]) == 2
    assert "--tokens.exclude-special-tokens is said where" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pretokenize"])
    assert "--out is required" in capsys.readouterr().err
