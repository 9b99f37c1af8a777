"""What names a model: a folder on this machine or a repository of the hub, never the one in place of the other."""

from __future__ import annotations

import os
from pathlib import Path

from monosema.core.errors import FileError
from monosema.core.files import looks_like_path


def resolve_source(source: str | os.PathLike[str], what: str = "model") -> str:
    """The absolute path of a local folder, or the hub's name unchanged.

    A name of something that exists here is a path. A ``Path``, an absolute path, and a name that begins with ``.`` or
    ``~``, ends with ``/`` or has two slashes is a path in any case: where nothing is there, it is not looked up on the
    hub.

    Raises:
        FileError: a path that leads to nothing.
    """
    name = os.fspath(source)
    path = os.path.expanduser(name)
    if os.path.exists(path):
        return os.path.abspath(path)
    if isinstance(source, Path) or looks_like_path(name) or name.endswith(("/", os.sep)):
        raise FileError(
            f"there is no {what} at {os.path.abspath(path)}; put it back or name the folder where it is now. A path is "
            "never looked up on the hub: its names are 'name' or 'owner/name'"
        )
    return name
