"""Checkpoints that are whole or not there, newest last, with a fall-back to the one before.

``checkpoints/step_000000120/`` holds ``state.safetensors`` (every tensor the next step depends on), ``state.json``
(plain values and the sha256 of every file) and what the caller adds (the coder as a loadable folder).
``checkpoints/latest`` names the newest one that was read back and found whole, ``checkpoints/best`` the best one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from monosema.core.errors import FileError
from monosema.core.files import (
    atomic_folder,
    parse_sums,
    read_json,
    remove_folder,
    remove_leftovers,
    require_regular,
    sha256_of,
    write_atomically,
    write_json,
)
from monosema.core.logs import get_logger
from monosema.core.plain import without_nan
from monosema.core.tensors import write_tensors
from monosema.core.words import counted
from monosema.training.checkpoint_plan import CheckpointPlan

logger = get_logger("monosema.training.checkpoint")

_NAME = re.compile(r"step_(\d+)")
_STATE, _TENSORS = "state.json", "state.safetensors"


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


def any_checkpoint(checkpoint: Checkpoint) -> None:
    """Refuses none."""


class Checkpoints:
    """The checkpoints of one run in ``folder``, those that ``plan`` keeps."""

    def __init__(self, folder: Path, plan: CheckpointPlan):
        self.folder, self.plan = folder, plan

    def write(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        plain: Mapping[str, Any],
        add: Callable[[Path], None] | None = None,
        *,
        is_best: bool = False,
    ) -> Path:
        """Write the checkpoint of ``step``; ``add`` puts further files into its folder before it appears.

        Older ones that are not kept are deleted only once this one was read back. Raises ``FileError`` where it cannot
        be written; the older ones then all stand.
        """
        target = self.folder / f"step_{step:09d}"
        with atomic_folder(target) as temporary:
            files = {_TENSORS: write_tensors(temporary / _TENSORS, tensors)}
            if add is not None:
                add(temporary)
            files |= {name: sha256_of(temporary / name) for name in _files_in(temporary) if name != _TENSORS}
            body = without_nan({**plain, "files": files})
            write_json(temporary / _STATE, {**body, "sha256": _checksum(body)})
        _verified(target)
        self._point("latest", target)
        if is_best:
            self._point("best", target)
        best = self._pointed("best")
        folders = [folder for folder in self._folders() if _step(folder) <= step]  # later ones are damaged
        for old in folders[: -self.plan.newest]:
            if not self.plan.is_kept(_step(old)) and old.name != best:
                remove_folder(old)
        return target

    def newest(self, check: Callable[[Checkpoint], None] = any_checkpoint) -> Checkpoint | None:
        """The newest checkpoint that is whole and that ``check`` does not refuse with a ``FileError``.

        Others are passed over with a warning. None where there is none at all; ``FileError`` where there are some and
        none can be used.
        """
        if not self.folder.exists():
            return None
        remove_leftovers(self.folder)
        folders = self._folders()
        last: FileError | None = None
        for folder in reversed(folders):
            try:
                checkpoint = _read(folder)
                check(checkpoint)
            except FileError as error:
                logger.warning("%s; falling back to the checkpoint before it", error)
                last = error
                continue
            self._mend_pointers(checkpoint)
            return checkpoint
        if last is not None:
            raise FileError(
                f"of {counted(len(folders), 'checkpoint')} in {self.folder} none can be used ({last}); put back "
                "whole files, "
                "or start in a new folder"
            ) from last
        if self._pointed("latest") is not None:
            raise FileError(
                f"the checkpoints that {self.folder / 'latest'} speaks of are gone; put them back, or start in a new "
                "folder"
            )
        return None

    def point_best(self, step: int) -> None:
        """Let ``best`` name the checkpoint of ``step``, where it is still there."""
        target = self.folder / f"step_{step:09d}"
        if target.exists() and self._pointed("best") != target.name:
            self._point("best", target)

    def _mend_pointers(self, found: Checkpoint) -> None:
        """Point ``latest`` at ``found``, with a warning where more has happened than a process that ended too early."""
        named, names = self._pointed("latest"), [folder.name for folder in self._folders()]
        if named == found.path.name:
            return
        if named not in names and (named is not None or len(names) > 1):
            logger.warning(
                "%s names %s, which is not here; going on from %s", self.folder / "latest", named, found.path.name
            )
        self._point("latest", found.path)

    def _pointed(self, name: str) -> str | None:
        """What a pointer holds; None where it is not there."""
        path = self.folder / name
        try:
            require_regular(path)
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except (OSError, FileError):
            return None

    def _point(self, name: str, target: Path) -> None:
        write_atomically(self.folder / name, target.name + "\n")

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _step(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _checksum(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _verified(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint whose every file is what was written; ``FileError`` naming one that is not."""
    what = f"checkpoint {folder.name} is damaged"
    try:
        plain = read_json(folder / _STATE)
    except FileError as error:
        raise FileError(f"{what}: {error}") from error
    checksum = plain.pop("sha256", None) if isinstance(plain, dict) else None
    if checksum is None or checksum != _checksum(plain):
        raise FileError(f"{what}: the content of {_STATE} does not match its checksum")
    try:
        files = parse_sums(plain.pop("files", None))
    except ValueError as error:
        raise FileError(f"{what}: {_STATE}: {error}") from error
    for name, expected in files.items():
        try:
            found = sha256_of(folder / name)
        except FileError as error:
            raise FileError(f"{what}: {error}") from error
        if found != expected:
            raise FileError(f"{what}: the content of {name} does not match its checksum")
    return dict(plain)


def _read(folder: Path) -> Checkpoint:
    plain = _verified(folder)
    try:
        tensors = load_file(folder / _TENSORS)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:  # types and shapes torch has not
        raise FileError(f"checkpoint {folder.name} is damaged: {_TENSORS}: {error}") from error
    return Checkpoint(_step(folder), folder, tensors, plain)
