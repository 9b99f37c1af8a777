"""Caches on the Hugging Face hub: a dataset repository with the files of a cache's folder."""

from __future__ import annotations

import os
from pathlib import Path

from monosema.core.errors import FileError, first_line
from monosema.core.files import looks_like_path
from monosema.core.words import counted
from monosema.data.cache.folders import LocalFolder, open_folder
from monosema.data.cache.manifest import MANIFEST, read_manifest
from monosema.data.cache.shards import require_shard

_PATTERNS = ("*.safetensors", "*.json", "*.arrow")


def push_cache(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a cache to the dataset repository ``owner/name``, which is made where there is none; returns its URL.

    All files arrive in one commit: readers see the cache whole or not at all. The token is that of ``hf auth login`` or
    ``HF_TOKEN`` unless given. Raises ``FileError`` where ``folder`` holds no whole cache on this machine, or the hub
    refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    local = open_folder(folder)
    if not isinstance(local, LocalFolder):
        raise FileError(f"{folder} is not on this machine; copy the cache here to push it")
    manifest = read_manifest(local)
    for record in manifest.shards:
        require_shard(local, manifest.plan.shards, record)
    api = HfApi(token=token)
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=local.path,
            allow_patterns=[MANIFEST, *(record.file for record in manifest.shards)],
            revision=revision,
            commit_message=f"Activations: {counted(manifest.n_rows, 'row')} of "
            f"{', '.join(manifest.plan.layout.hook_names)}",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileError(f"the hub did not take {folder} as {repository!r}: {first_line(error)}") from error
    return str(commit.commit_url)


def is_repository(where: str | os.PathLike[str]) -> bool:
    """Whether ``where`` can only be the hub's name of a repository: ``owner/name``, and no folder here."""
    return (
        isinstance(where, str)
        and where.count("/") == 1
        and "://" not in where
        and not looks_like_path(where)
        and not Path(where).exists()
    )


def download(repository: str, revision: str | None = None, token: str | None = None) -> LocalFolder:
    """The files of a dataset repository, kept by the hub's own cache; ``FileError`` where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        home = snapshot_download(
            repository, repo_type="dataset", revision=revision, token=token, allow_patterns=list(_PATTERNS)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileError(
            f"no folder {repository!r} here that holds an activation cache, and no such dataset repository could be "
            f"loaded from the hub ({first_line(error)}); give the path of a cache's folder, or owner/name on the hub"
        ) from error
    return LocalFolder(Path(home))
