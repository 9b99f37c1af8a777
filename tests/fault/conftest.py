"""The workshop, started once: it makes runs that are killed, cut off and started again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model

sys.path.insert(0, str(Path(__file__).parent))  # for fault_runs, whatever pytest's import mode

from fault_runs import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    save_tiny_model(folder / "model")
    save_text(folder / "corpus.txt")
    arguments = [sys.executable, str(Path(__file__).parent / "workshop.py"), str(folder / "model")]
    with subprocess.Popen(
        [*arguments, str(folder / "corpus.txt")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Workshop(process)
        assert process.stdin is not None
        process.stdin.close()
