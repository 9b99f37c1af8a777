"""What would fetch, replaced by traps that raise an audit event: ``watch.Guard`` takes it for the fetch itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import datasets
import fsspec
import huggingface_hub

EVENT = "fuzz.fetch"
_SCHEMES = ("http", "https", "s3", "s3a", "gs", "gcs", "ftp", "sftp", "ssh", "abfs", "az", "github", "smb", "webhdfs")
_hub_is_named = False


@contextlib.contextmanager
def hub_may_be_asked() -> Iterator[None]:
    """Inside, hub ids may be looked up: the caller asked for the model and text that a file names."""
    global _hub_is_named
    _hub_is_named = True
    try:
        yield
    finally:
        _hub_is_named = False


class _Url(fsspec.AbstractFileSystem):
    protocol = _SCHEMES
    cachable = False

    def __init__(self, *given: Any, **options: Any):
        sys.audit(EVENT, "a URL")
        raise OSError("nothing is fetched here")


def _hub(*given: Any, **options: Any) -> Any:
    said = str((given, options)).replace("hf://", "")
    if not _hub_is_named or "://" in said or "'trust_remote_code': True" in said:
        sys.audit(EVENT, said[:200])
    raise OSError("nothing is fetched here")


def set_traps() -> None:
    """Replace what the library fetches by."""
    for scheme in _SCHEMES:
        fsspec.register_implementation(scheme, _Url, clobber=True)
    huggingface_hub.hf_hub_download = huggingface_hub.snapshot_download = _hub
    datasets.load_dataset = _hub
