"""Caches behind URLs: the same bits as on a disk, through fsspec's file system in memory."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest
import torch
from data_cache import number_cache, served, stored

from monosema.core.errors import ConfigError, FileError, MissingExtraError
from monosema.data.cache import ActivationCache, shuffle_cache
from monosema.data.cache.folders import LocalFolder, RemoteFolder, open_folder


@pytest.fixture
def url():
    path = f"memory://{uuid.uuid4().hex}"
    yield path
    fsspec.filesystem("memory").rm(path, recursive=True)


def test_a_remote_cache_is_read_as_a_local_one(tmp_path: Path, url: str) -> None:
    local, remote = number_cache(tmp_path / "c", 600), number_cache(url, 600)
    assert local == remote
    assert torch.equal(served(url, mix_bytes=1, epochs=2), served(tmp_path / "c", mix_bytes=1, epochs=2))
    names = open_folder(url).names()
    assert names == open_folder(tmp_path / "c").names() and "manifest.json" in names


def test_a_remote_cache_is_shuffled_and_gone_on_with(tmp_path: Path, url: str) -> None:
    number_cache(tmp_path / "c")
    first = shuffle_cache(tmp_path / "c", url, memory_bytes=6000)
    files = fsspec.filesystem("memory")
    files.rm(f"{url}/manifest.json")
    files.rm(f"{url}/{first.shards[0].file}")
    assert shuffle_cache(tmp_path / "c", url, memory_bytes=6000).fingerprint == first.fingerprint
    assert torch.equal(stored(url)["rows"], stored(tmp_path / "c")["rows"])


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "deleted"])
def test_a_damaged_remote_shard_is_named(url: str, damage: str) -> None:
    victim = number_cache(url).shards[2].file
    files = fsspec.filesystem("memory")
    content = bytearray(files.cat_file(f"{url}/{victim}"))
    content[len(content) // 2] ^= 1
    if damage == "deleted":
        files.rm_file(f"{url}/{victim}")
    else:
        files.pipe_file(f"{url}/{victim}", bytes(content[: -9 if damage == "truncated" else None]))
    with pytest.raises(FileError, match=f"memory://.*{victim}"):
        list(ActivationCache(url, 10))


def test_places_that_cannot_be_opened(url: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no activation cache"):
        ActivationCache(url, 10)
    fsspec.filesystem("memory").pipe_file(f"{url}/notes.txt", b"mine")
    with pytest.raises(ConfigError, match="not empty"):
        number_cache(url)
    with pytest.raises(FileError, match="nosuch"):
        open_folder("nosuch://bucket/x")
    assert isinstance(open_folder(f"file://{tmp_path}"), LocalFolder)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=r"s3://bucket/x .*s3fs.*monosema\[remote\]"):
        RemoteFolder("s3://bucket/x")
