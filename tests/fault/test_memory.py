"""Memory runs out under a real limit on the process's address space: advice, and a checkpoint."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model

SCRIPT = Path(__file__).parent / "memory_once.py"

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from Linux's /proc"),
]


def test_the_step_before_is_kept_and_the_message_says_what_is_large(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "run", "550"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    found = re.match(r"OutOfMemoryError: out of memory after step (\d+) \(Unable to allocate 2.00 GiB", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 0
    assert "weights and optimizer state (d_sae)" in done.stdout
    assert f"The newest checkpoint is kept in {tmp_path / 'run'}" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == f"step_{int(found[1]):09d}"


def test_a_dictionary_too_large_is_told_with_one_that_fits(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_text(tmp_path / "corpus.txt")
    most = 4 * 2**30

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    options = ["--model.source", tmp_path / "model", "--tokens.source", tmp_path / "corpus.txt"]
    options += ["--tokens.context-size", "32", "--stream.hook-names", "blocks.1.hook_resid_post"]
    options += ["--coder.d-sae", str(2**25), "--training.tokens", "2048", "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "monosema", "train", *options],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 2, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("monosema train: out of memory before the first step (")
    assert "one of these would: --coder.d-sae=" in message
    assert "Traceback" not in done.stderr
