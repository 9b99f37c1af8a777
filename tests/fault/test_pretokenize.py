"""Packed tokens whose writer is killed again and again are those written in peace, byte for byte."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model

SCRIPT = Path(__file__).parent / "pretokenize_once.py"


def start(tmp_path: Path, name: str) -> "subprocess.Popen[str]":
    inputs = [str(tmp_path / "model"), str(tmp_path / "corpus.txt"), str(tmp_path / name)]
    return subprocess.Popen([sys.executable, str(SCRIPT), *inputs], stdout=subprocess.PIPE, text=True)


def finish(tmp_path: Path, name: str) -> tuple[list[str], str]:
    with start(tmp_path, name) as process:
        *lines, last = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    return lines, last


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.fault
def test_sigkills_while_pretokenizing_change_no_byte(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_text(tmp_path / "corpus.txt")
    files, alone = finish(tmp_path, "alone")
    assert len(files) > 30
    for n_files in random.Random(7).sample(range(3, len(files) // 5), 4):
        with start(tmp_path, "killed") as process:
            assert process.stdout is not None
            for _ in range(n_files):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    rest, end = finish(tmp_path, "killed")
    assert 0 < len(rest) < len(files)
    assert end == alone
    assert content(tmp_path / "killed") == content(tmp_path / "alone")
