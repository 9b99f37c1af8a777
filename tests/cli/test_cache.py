"""``monosema cache``, and training on what it wrote."""

from pathlib import Path

import pytest

import monosema as ms
from monosema.cli.main import main
from monosema.data import ActivationCache

OPTIONS = [
    "--tokens.context-size", "64", "--tokens.max-documents", "20", "--stream.hook-names", "blocks.1.hook_resid_post",
    "--stream.chunk-contexts", "40", "--cache.tokens", "3000", "--cache.shard-bytes", "200000", "--quiet",
]  # fmt: skip


def test_the_command_writes_a_cache_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--out", str(tmp_path / "c"), *OPTIONS]) == 0
    said = capsys.readouterr().out
    cache = ActivationCache(tmp_path / "c", batch_size=128)
    assert f"{cache.manifest.n_rows:,} rows of blocks.1.hook_resid_post" in said and "bfloat16" in said
    assert main(["cache", "--out", str(tmp_path / "c"), *OPTIONS]) == 0  # again: everything is there
    result = ms.train(
        ms.SAE(cache.d_in, 64, activation=ms.TopK(k=4)), cache, ms.TrainingConfig(tokens=1280), progress=False
    )
    assert result.coder.hook_name == "blocks.1.hook_resid_post"


def test_another_cache_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--out", str(tmp_path / "c"), *OPTIONS]) == 0
    assert main(["cache", "--out", str(tmp_path / "c"), *OPTIONS, "--cache.dtype", "int8"]) == 2
    assert "other options (dtype" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cache", *OPTIONS])
    assert "--out is required" in capsys.readouterr().err
