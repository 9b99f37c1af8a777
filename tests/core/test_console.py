"""Printing never ends a run: pipes whose reader left, full disks, closed terminals."""

from __future__ import annotations

import errno
import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from monosema.cli.main import main
from monosema.core.console import Console
from monosema.core.progress import Progress, say

FULL = Path("/dev/full")


class Refusing(io.StringIO):
    """Refuses every text, as a device that is full or gone."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "refused")

    def flush(self) -> None:
        raise OSError(self.number, "refused")


def test_the_first_error_is_kept_and_text_is_tried_again() -> None:
    stream = Refusing(errno.ENOSPC)
    console = Console(stream)
    assert console.write("abc") == 3
    console.flush()
    assert console.error is not None
    assert console.error.errno == errno.ENOSPC
    console.stream = io.StringIO()
    console.write("there is room again")
    assert console.stream.getvalue() == "there is room again"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_progress_goes_on_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(sys, "stderr", Refusing(number))
    monkeypatch.setattr(logging.getLogger("monosema.progress"), "level", logging.WARNING)
    say("a line")
    with Progress("train", 10, interval=0.0) as lines:
        lines.advance(10)
    monkeypatch.setattr("monosema.core.progress._interactive", lambda: True)
    with Progress("train", 10) as bar:
        bar.advance(5)
        bar.figures({"loss": 1.0})


def test_a_lost_result_is_a_failure_and_a_reader_that_left_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(errno.ENOSPC))
    monkeypatch.setattr(sys, "stderr", errors := io.StringIO())
    assert main(["--version"]) == 1
    assert errors.getvalue() == "monosema: cannot write to standard output: refused\n"
    monkeypatch.setattr(sys, "stdout", Refusing(errno.EPIPE))
    assert main(["--version"]) == 0
    with pytest.raises(SystemExit) as help_asked_for:
        main(["inspect", "--help"])
    assert help_asked_for.value.code == 0
    assert errors.getvalue().count("\n") == 1


def test_help_into_a_pipe_that_closes_prints_no_traceback() -> None:
    code = "import sys; from monosema.cli.main import main; sys.exit(main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_full_device_is_named_in_one_line() -> None:
    code = "import sys; from monosema.cli.main import main; sys.exit(main(['--help']))"
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "monosema: cannot write to standard output: No space left on device\n"
