"""Checkpoints that are whole or not there, newest last, with a fall-back to the one before.

``checkpoints/step_000000120/`` holds ``state.safetensors`` (every tensor the next step depends on), ``state.json``
(plain values and the sha256 of both) and what the caller adds (the coder as a loadable folder).
``checkpoints/latest`` names the newest one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from monosema.core.errors import FileError
from monosema.core.files import (
    atomic_folder,
    read_json,
    remove_leftovers,
    require_regular,
    write_atomically,
    write_json,
)

logger = logging.getLogger("monosema.training.checkpoint")

_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds."""

    step: int
    """Steps done when it was taken."""
    path: Path
    """Its folder."""
    tensors: dict[str, Tensor]
    """Tensors by name."""
    plain: dict[str, Any]
    """JSON values."""


class Checkpoints:
    """The checkpoints of one run, in ``folder``: the newest ``keep``, and those of every ``keep_every`` steps."""

    def __init__(self, folder: Path, keep: int, keep_every: int = 0):
        self.folder, self.keep, self.keep_every = folder, keep, keep_every

    def write(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        plain: Mapping[str, Any],
        add: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write the checkpoint of ``step``; ``add`` puts further files into its folder before it appears.

        Older ones that are not kept are deleted only once this one is safe. Raises ``FileError`` where it cannot
        be written; the older ones then all stand.
        """
        target = self.folder / f"step_{step:09d}"
        data = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        with atomic_folder(target) as temporary:
            (temporary / "state.safetensors").write_bytes(data)
            write_json(temporary / "state.json", {**plain, "sha256": _checksum(data, plain)})
            if add is not None:
                add(temporary)
        write_atomically(self.folder / "latest", target.name + "\n")
        for old in self._folders()[: -self.keep]:
            if self.keep_every == 0 or int(old.name.removeprefix("step_")) % self.keep_every != 0:
                shutil.rmtree(old, ignore_errors=True)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning.

        None where there is none at all; ``FileError`` where there are some and none is whole.
        """
        if not self.folder.exists():
            return None
        remove_leftovers(self.folder)
        folders = self._folders()
        for folder in reversed(folders):
            try:
                return _read(folder)
            except FileError as error:
                logger.warning("%s; falling back to the checkpoint before it", error)
        if folders:
            count = len(folders)
            raise FileError(f"none of the {count} checkpoints in {self.folder} can be read; start in a new folder")
        return None

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _checksum(data: bytes, plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(data + json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> Checkpoint:
    plain = read_json(folder / "state.json")
    try:
        require_regular(folder / "state.safetensors")
        data = (folder / "state.safetensors").read_bytes()
    except OSError as error:
        raise FileError(f"checkpoint {folder.name} is damaged: {error.strerror or error}") from error
    checksum = plain.pop("sha256", None) if isinstance(plain, dict) else None
    if checksum is None or checksum != _checksum(data, plain):
        raise FileError(f"checkpoint {folder.name} is damaged: its content does not match its checksum")
    try:
        tensors = load_tensors(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # types and shapes that torch has not
        raise FileError(f"checkpoint {folder.name} is damaged: {error}") from error
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return Checkpoint(int(match[1]), folder, tensors, plain)
