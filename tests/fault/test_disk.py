"""A disk that fills, or a folder that may no longer be written, at any file: a clear error, and nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import Workshop, results

FILES = {
    "a checkpoint's tensors": ("stream", r"checkpoints/.*state\.safetensors$", 4),
    "a checkpoint's values": ("stream", r"checkpoints/.*state\.json$", 4),
    "a checkpoint's dictionary": ("stream", r"checkpoints/.*sae_weights\.safetensors$", 4),
    "the newest checkpoint's name": ("stream", r"-latest$", 3),
    "the best checkpoint's name": ("stream", r"-best$", 1),
    "metrics": ("stream", r"metrics\.jsonl$", 9),
    "the config": ("stream", r"config\.yaml$", 1),
    "the environment": ("stream", r"run\.json$", 1),
    "checksums": ("stream", r"checksums\.json$", 2),
    "the dictionary": ("stream", r"run/\.writing-\d+-coder/.*sae_weights\.safetensors$", 1),
    "the report": ("stream", r"report\.json$", 1),
    "the summary": ("stream", r"summary\.json$", 1),
    "a coder of several": ("several", r"relu/checkpoints/.*state\.safetensors$", 2),
    "a cache's plan": ("cache", r"plan\.json$", 1),
    "a cache's shard": ("cache", r"chunk-\d+-\d+\.safetensors$", 5),
    "a cache's chunk": ("cache", r"chunk-\d+\.json$", 2),
    "a cache's manifest": ("cache", r"manifest\.json$", 1),
}


def check_rest(workshop: Workshop, kind: str, out: Path, alone: Path) -> None:
    """The same call goes on, and ends with the same bits."""
    workshop.finish(kind, out)
    expected, found = results(alone), results(out)
    assert [name for name in {**expected, **found} if expected.get(name) != found.get(name)] == []


@pytest.mark.fault
@pytest.mark.parametrize("what", list(FILES))
def test_a_full_disk_is_named_and_nothing_is_lost(workshop: Workshop, tmp_path: Path, what: str) -> None:
    kind, pattern, occurrence = FILES[what]
    alone, out = workshop.alone(kind, tmp_path), tmp_path / "out"
    trouble = {"trouble": "full", "trouble_with": pattern, "occurrence": occurrence}
    answer = workshop.run(kind, out, **trouble)
    assert answer["status"] == 1, f"no such file was written: {answer}"
    assert answer["error"].startswith("FileError: cannot write "), answer["traceback"]
    assert "File too large; free some space" in answer["error"]
    check_rest(workshop, kind, out, alone)


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that another user, too, can reach and write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.fault
@pytest.mark.parametrize("what", ["a checkpoint's tensors", "the report", "a cache's shard"])
def test_a_folder_that_may_not_be_written_is_named_and_nothing_is_lost(
    workshop: Workshop, tmp_path: Path, for_all: Path, what: str
) -> None:
    kind, pattern, _ = FILES[what]
    alone, out = workshop.alone(kind, tmp_path), for_all / "out"
    # of a checkpoint the folder around its temporary one is what loses permission
    pattern = r"-latest$" if "checkpoint" in what else pattern
    answer = workshop.run(
        kind, out, trouble="locked", trouble_with=pattern, occurrence=3 if "report" not in what else 1
    )
    assert answer["status"] == 1, f"no such file was written: {answer}"
    assert answer["error"].startswith("FileError: cannot write "), answer["traceback"]
    assert "Permission denied" in answer["error"]
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    check_rest(workshop, kind, out, alone)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 KiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode != 0:
        pytest.skip(f"mounting is not allowed: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault
@pytest.mark.skipif(os.name != "posix", reason="mounts")
def test_a_small_disk_fills_and_the_run_goes_on_on_a_larger_one(
    workshop: Workshop, tmp_path: Path, small_disk: Path
) -> None:
    alone, out = workshop.alone("stream", tmp_path), small_disk / "out"
    answer = workshop.run("stream", out)
    assert answer["status"] == 1
    assert "No space left on device; free some space" in answer["error"], answer["traceback"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    check_rest(workshop, "stream", out, alone)
