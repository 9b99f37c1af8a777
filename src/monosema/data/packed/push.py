"""Packed tokens to the Hugging Face hub, as a dataset repository."""

from __future__ import annotations

import os
from pathlib import Path

from monosema.core.errors import FileError, UserError, first_line
from monosema.core.words import counted
from monosema.data.packed.contexts import StoredContexts
from monosema.data.packed.layout import files
from monosema.data.packed.manifest import MANIFEST, is_packed, read_manifest
from monosema.data.packed.read import StoredTokens


def push_pretokenized(folder: str | os.PathLike[str], repository: str, *, private: bool = False) -> str:
    """Upload what ``pretokenize`` wrote into ``folder``, with a card; returns the address of the commit.

    ``repository`` (``owner/name``) is made where it is none yet, ``private`` or not; shards that it has from before go
    in the same commit. The access token is the environment's (``HF_TOKEN``) or that of a login.

    Raises ``FileError`` where the folder is not finished or damaged, ``UserError`` where the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    path = Path(folder)
    if not is_packed(path):
        raise FileError(f"{path} holds no packed tokens ({MANIFEST} is missing)")
    manifest = read_manifest(path)
    if manifest.text is None:
        raise FileError(f"the tokens in {path} are not finished; run the command that writes them again")
    for name in manifest.sides:
        for _ in StoredContexts(StoredTokens(path, manifest).shards(name)).pieces():
            pass  # reading is checking
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=path,
            allow_patterns=[MANIFEST, *files(manifest)],
            delete_patterns=["train/*", "heldout/*"],
            commit_message=f"{counted(manifest.train.n_contexts, 'context')} of "
            f"{counted(manifest.plan.context_size, 'token')}",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"cannot push to {repository!r} ({first_line(error)}); give owner/name, and an access token that may write "
            "there in HF_TOKEN"
        ) from error
    return str(commit.commit_url)
