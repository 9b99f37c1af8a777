"""Every reader takes what was found before and new mutations; and the watch sees what it must."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from monosema.core.errors import FileError

HERE = Path(__file__).parent
READERS = (
    "dictionary", "cache", "checkpoint", "run", "config", "env", "text", "packed", "parquet", "dataset", "npy",
    "features", "crosscoder_report", "drrik", "session",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are those of Linux")


def fuzz(*arguments: str) -> None:
    command = [sys.executable, str(HERE / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "0 findings" in done.stdout


# Cases are counted, so that a faster machine does not reach further than a slower one.


def test_what_was_found_stays_mended_and_200_cases_of_each_reader_find_nothing():
    fuzz("--cases", "200")


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_1000_cases_find_nothing(reader):
    fuzz("--reader", reader, "--cases", "1000", "--seed", "1")


def outside(folder: Path) -> None:
    (folder.parent / "secret").read_text()


def writes(folder: Path) -> None:
    (folder / "a.json").write_text("harmed")


def hangs(folder: Path) -> None:
    while True:
        time.sleep(0.01)


def runs(folder: Path) -> None:
    subprocess.run(["true"], check=False)


def says_nothing(folder: Path) -> None:
    raise FileError("something is damaged")


def fails(folder: Path) -> None:
    {}["error"]


def refuses(folder: Path) -> None:
    raise FileError(f"{folder} is damaged")


SEEN: list[tuple[Callable[[Path], None], str | None]] = [
    (outside, "outside its folder"), (writes, "for writing"), (hangs, "longer than"), (runs, "subprocess.Popen"),
    (says_nothing, "names no file"), (fails, "KeyError"), (refuses, None), (lambda folder: None, None),
]  # fmt: skip


@pytest.mark.parametrize(("read", "words"), SEEN)
def test_the_watch_sees_it(tmp_path, monkeypatch, read, words):
    monkeypatch.syspath_prepend(HERE)
    import watch

    monkeypatch.setattr(watch, "SECONDS", 0.2)
    folder = tmp_path / "case"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    os.environ.setdefault("PATH", os.defpath)
    before = sys.gettrace()
    found, _ = watch.verdict(read, folder, ["a.json"], watch.Lines(), watch.Guard(folder))
    sys.settrace(before)
    assert (found is None) if words is None else (words in (found or ""))


def test_new_lines_are_counted_once(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import watch

    from monosema.core.errors import nearest_names

    lines = watch.Lines()
    assert lines.run(lambda: nearest_names("a", ["a"])) == 1
    assert lines.run(lambda: nearest_names("a", ["a"])) == 0
    assert lines.share() == (1, 1)
