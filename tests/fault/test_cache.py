"""A cache whose writer is killed again and again ends as one written in peace."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model

SCRIPT = Path(__file__).parent / "cache_once.py"


def start(tmp_path: Path, name: str) -> "subprocess.Popen[str]":
    inputs = [str(tmp_path / "model"), str(tmp_path / "corpus.txt"), str(tmp_path / name)]
    return subprocess.Popen([sys.executable, str(SCRIPT), *inputs], stdout=subprocess.PIPE, text=True)


def finish(tmp_path: Path, name: str) -> tuple[list[str], str]:
    with start(tmp_path, name) as process:
        *lines, last = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    return lines, last


@pytest.mark.fault
def test_sigkills_while_caching_change_no_bit(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_text(tmp_path / "corpus.txt")
    files, alone = finish(tmp_path, "alone")
    assert len(files) > 20
    for number in sorted(random.Random(7).sample(range(2, len(files) // 2), 4)):
        with start(tmp_path, "killed") as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == files[number]:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "manifest.json").exists()
    rest, end = finish(tmp_path, "killed")
    assert 0 < len(rest) < len(files)
    assert end == alone
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "killed").iterdir()} >= names
    left = [path for path in (tmp_path / "killed").iterdir() if path.name not in names]
    assert not left, f"{left} are left of killed writers"
