"""From a path, a URL or the hub's name of a repository to the shards there, whoever wrote them."""

from __future__ import annotations

import os
from pathlib import Path

from monosema.data.cache.arrow import ArrowShards, is_arrow
from monosema.data.cache.drrik import DrrikShards, is_drrik
from monosema.data.cache.folders import LocalFolder, open_folder
from monosema.data.cache.repository import download, is_repository
from monosema.data.cache.sources import OwnShards, ShardSource


def open_source(where: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None) -> ShardSource:
    """The shards at a path, a URL or the hub's name of a repository; ``FileError`` where there are none."""
    folder = download(str(where), revision, token) if is_repository(where) else open_folder(where)
    if isinstance(folder, LocalFolder) and is_arrow(folder.path):
        return ArrowShards(folder.path)
    if isinstance(folder, LocalFolder) and is_drrik(folder.path):
        return DrrikShards(folder.path)
    return OwnShards(folder)


def is_cache(where: object) -> bool:
    """Whether ``where`` is the path of a folder, or of a file that ``open_source`` opens."""
    return isinstance(where, str | os.PathLike) and (os.path.isdir(where) or is_drrik(Path(where)))
