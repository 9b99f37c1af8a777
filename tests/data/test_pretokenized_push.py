"""Packed tokens on the hub: what is downloaded is what was pushed. In a process of its own, which may go online."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from data_tiny import word_tokenizer, words
from stand_in_hub import stand_in_hub

from monosema.core.errors import FileError
from monosema.data import load_tokens, pretokenize, push_pretokenized

TEXTS = [words(*range(4, 12 + i % 9), 4 + i % 27) for i in range(60)]

PUSH = """
import sys
from huggingface_hub import snapshot_download
from monosema.core.errors import UserError
from monosema.data import push_pretokenized

folder, copy = sys.argv[1:]
print(push_pretokenized(folder, "org/tokens", private=True))
snapshot_download("org/tokens", repo_type="dataset", local_dir=copy)
try:
    push_pretokenized(folder, "no/such/name")
except UserError as error:
    print(f"refused: {error}")
"""


def written(folder: Path, n_texts: int, shard_bytes: int) -> Path:
    options = {"heldout_fraction": 0.2, "shard_bytes": shard_bytes, "progress": False}
    pretokenize(TEXTS[:n_texts], word_tokenizer(), 8, folder, **options)
    return folder


def test_what_is_pushed_is_downloaded_and_old_shards_go(tmp_path: Path) -> None:
    folder, copy = written(tmp_path / "tokens", 60, 2**20), tmp_path / "copy"
    (tmp_path / "hub" / "train").mkdir(parents=True)
    (tmp_path / "hub" / "train" / "data-00007.arrow").write_text("of a larger one before")
    (folder / "notes.md").write_text("mine")
    with stand_in_hub({"org/tokens": tmp_path / "hub"}) as (url, seen):
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        result = subprocess.run(
            [sys.executable, "-c", PUSH, str(folder), str(copy)],
            env={**environment, "HF_TOKEN": "hf_secret"}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, *rest = result.stdout.splitlines()
    assert "/datasets/org/tokens/commit/" in first
    assert rest[0].startswith("refused: cannot push to 'no/such/name'")
    assert "HF_TOKEN" in rest[0]
    assert "POST api/datasets/org/tokens/commit/main Bearer hf_secret" in seen
    assert "private: True" in seen
    pushed = {path.relative_to(tmp_path / "hub").as_posix() for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    own = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert pushed == own - {".lock", "notes.md"}
    again, tokens = load_tokens(copy, word_tokenizer()), load_tokens(folder, word_tokenizer())
    assert again.train.contexts[:].tolist() == tokens.train.contexts[:].tolist()
    assert again.heldout.fingerprint == tokens.heldout.fingerprint
    card = datasets.load_dataset(str(copy), split="train", cache_dir=str(tmp_path / "datasets"))
    assert len(card) == tokens.train.n_contexts


def test_what_is_damaged_or_not_finished_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no packed tokens"):
        push_pretokenized(tmp_path, "org/tokens")
    shard = written(tmp_path / "tokens", 30, 2**20) / "train" / "data-00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(FileError, match=r"data-00000\.arrow is not what was written"):
        push_pretokenized(tmp_path / "tokens", "org/tokens")
