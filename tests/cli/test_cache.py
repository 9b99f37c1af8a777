"""``monosema cache``, and training on what it wrote."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml

from monosema.cli.main import main
from monosema.data import ActivationCache

datasets.disable_progress_bars()
SITE = "blocks.1.hook_resid_post"
OPTIONS = [
    "--tokens.context-size", "64", "--tokens.max-documents", "20", "--stream.hook-names", SITE,
    "--stream.chunk-contexts", "40", "--cache.tokens", "3000", "--cache.shard-bytes", "200000", "--quiet",
]  # fmt: skip


def test_the_command_writes_a_cache_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *OPTIONS]) == 0
    home = f"activations/stdlib/builtin/{SITE}"
    cache = ActivationCache(home, batch_size=128)
    said = capsys.readouterr().out
    assert f"{cache.manifest.n_rows:,} rows of {SITE}" in said and "bfloat16" in said and home in said
    assert main(["cache", *OPTIONS]) == 0  # again: everything is there
    assert main(["cache", "shuffle", home, "--out", "shuffled", "--seed", "3", "--memory-bytes", "500000"]) == 0
    shuffled = ActivationCache("shuffled", 128)
    assert shuffled.manifest.n_rows == cache.manifest.n_rows and shuffled.manifest.plan.n_chunks > 2
    assert main(["cache", "export", "shuffled", "--out", "arrow", "--quiet"]) == 0
    assert "without the last" in capsys.readouterr().out
    assert main(["cache", "export", "shuffled", "--out", "array", "--format", "npy", "--quiet"]) == 0
    assert len(np.load("array/activations.npy", mmap_mode="r")) == cache.manifest.n_rows
    assert main(["cache", "export", "shuffled", "--out", "x", "--format", "npy", "--context-size", "8"]) == 2
    assert "--context-size goes with --format arrow" in capsys.readouterr().err and not Path("x").exists()
    for folder in ("shuffled", "arrow", "array"):
        options = ["--cache.folder", folder, "--cache.batch-size", "128", "--coder.d-sae", "64"]
        assert main(["train", *options, "--training.tokens", "1280", "--out", f"run-{folder}", "--quiet"]) == 0
        assert f"dictionary: run-{folder}/coder" in capsys.readouterr().out
        recorded = yaml.safe_load(Path(f"run-{folder}", "config.yaml").read_text())
        assert recorded["cache"]["folder"] == folder and recorded["cache"]["hook_names"] == [SITE]
        assert main(["train", "--config", f"run-{folder}/config.yaml", "--out", f"run-{folder}", "--quiet"]) == 0


def test_another_cache_in_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--out", str(tmp_path / "c"), *OPTIONS]) == 0
    assert main(["cache", "--out", str(tmp_path / "c"), *OPTIONS, "--cache.dtype", "int8"]) == 2
    assert "other options (dtype" in capsys.readouterr().err
    assert main(["cache", "shuffle", str(tmp_path / "none"), "--out", str(tmp_path / "s")]) == 2
    assert "holds no activation cache" in capsys.readouterr().err
