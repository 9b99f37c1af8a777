"""Caches by the hub's names, from a stand-in hub on loopback: pushed by the command, read by their name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_cache import number_cache, served
from stand_in_hub import stand_in_hub

from monosema.core.errors import FileError
from monosema.data import push_cache
from monosema.data.cache.repository import is_repository

PUSH_AND_READ = """
import sys
import torch
import monosema as ms
from monosema.cli.main import main
assert main(["cache", "push", sys.argv[1], "org/rows"]) == 0
rows = torch.cat(list(ms.ActivationCache("org/rows", 10, mix_bytes=1)))
print("rows", len(rows), float(rows.double().sum()))
try:
    ms.ActivationCache("org/absent", 10)
except ms.UserError as error:
    print("refused:", error)
assert main(["cache", "push", sys.argv[1], "not a name"]) == 2
"""


def test_what_is_pushed_is_read_by_its_name(tmp_path: Path) -> None:
    number_cache(tmp_path / "c")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    (tmp_path / "hub").mkdir()
    with stand_in_hub({"org/rows": tmp_path / "hub"}) as (url, seen):
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_test"}
        done = subprocess.run(
            [sys.executable, "-c", PUSH_AND_READ, str(tmp_path / "c")],
            env={**environment, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    rows = served(tmp_path / "c", mix_bytes=1)
    assert f"rows {len(rows)} {float(rows.double().sum())}" in done.stdout
    assert f"{url}/datasets/org/rows/commit/" in done.stdout
    assert "refused: no folder 'org/absent' here that holds an activation cache" in done.stdout
    assert "the hub did not take" in done.stderr
    pushed = {path.name for path in (tmp_path / "hub").iterdir()}
    shards = {path.name for path in (tmp_path / "c").glob("*.safetensors")}
    assert pushed == {"manifest.json", *shards}
    assert sum(each.startswith("POST") and "/commit/" in each for each in seen) == 1


def test_what_is_no_whole_cache_is_not_pushed(tmp_path: Path) -> None:
    manifest = number_cache(tmp_path / "c")
    (tmp_path / "c" / manifest.shards[1].file).unlink()
    with pytest.raises(FileError, match=manifest.shards[1].file):
        push_cache(tmp_path / "c", "org/rows")
    with pytest.raises(FileError, match="not on this machine"):
        push_cache("memory://c", "org/rows")


@pytest.mark.parametrize(
    ("where", "expected"),
    [("org/rows", True), ("./org/rows", False), ("/org", False), ("a/b/c", False), ("rows", False), ("s3://b", False)],
)
def test_names_of_repositories(where: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_repository(where) == expected
    if expected:
        (tmp_path / where).mkdir(parents=True)
        assert not is_repository(where)
