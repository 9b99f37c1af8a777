"""What several formats have in common: a first look into ``cfg.json``, tensors held to shapes, densities of latents."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from safetensors.torch import save
from torch import Tensor

from monosema.core.errors import FileError, UserError
from monosema.core.files import read_json, write_atomically
from monosema.core.finite import all_finite
from monosema.core.tensors import read_tensors

CONFIG_FILE, SPARSITY_FILE = "cfg.json", "sparsity.safetensors"
_UNFIT = "the file's tensors do not fit its config"


def peek(path: Path) -> Mapping[str, Any]:
    """The mapping in a JSON file; empty where the file is missing, damaged, or holds something else."""
    if not path.is_file():  # also for a name that no file can have
        return {}
    try:
        config = read_json(path)
    except UserError:
        return {}
    return config if isinstance(config, dict) else {}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` of any device and layout."""
    write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def write_density(folder: Path, log10_density: Tensor | None) -> None:
    """Write ``sparsity [d_sae]`` in float32, where densities are known."""
    if log10_density is not None:
        write_safetensors(folder / SPARSITY_FILE, {"sparsity": log10_density.detach().cpu().float()})


def read_density(folder: Path) -> Tensor | None:
    """``sparsity [d_sae]`` of a folder; None where there is no such file."""
    path = folder / SPARSITY_FILE
    if not path.exists():
        return None
    density = read_tensors(path).get("sparsity")
    if density is not None and density.ndim != 1:
        raise FileError(f"{path} must hold one number for each latent, got {density.dtype} {list(density.shape)}")
    return density


@final
class FileTensors:
    """The tensors of a file, each taken once and held to the shape that the file's config gives it."""

    def __init__(self, tensors: Mapping[str, Tensor], where: Path):
        self._left, self._names, self._where = dict(tensors), sorted(tensors), where
        self._most_sites = max((len(tensors), *(size for each in tensors.values() for size in each.shape)))

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor ``name``; ``FileError`` where it is missing, of another shape, or not finite."""
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise FileError(f"{self._where}: {_UNFIT}: it lacks {name}")
        if tuple(tensor.shape) != shape:
            found, said = list(tensor.shape), list(shape)
            raise FileError(f"{self._where}: {_UNFIT}: {name} is {found}, the config says {said}")
        if not all_finite(tensor):
            raise FileError(f"{self._where}: {name} holds values that are not finite")
        return tensor

    def take_if_there(self, name: str, *shape: int) -> Tensor | None:
        """The same, or None where the file does not have it."""
        return self.take(name, *shape) if name in self._left else None

    def take_below(self, prefix: str) -> dict[str, Tensor]:
        """Those whose names begin with ``prefix``, by the rest of their names; they may have any shape."""
        places = range(bisect.bisect_left(self._names, prefix), len(self._names))
        later = (self._names[place] for place in places)
        names = itertools.takewhile(lambda name: name.startswith(prefix), later)
        return {name.removeprefix(prefix): self.take(name, *self._left[name].shape) for name in names}

    def require_sites(self, **widths: tuple[int, ...]) -> None:
        """Refuse more sites than tensors, and than values in the widest one, before anything is made of them."""
        for name, each in widths.items():
            if len(each) > self._most_sites:
                raise FileError(f"{self._where}: {_UNFIT}: {len(each)} {name}")

    def require_none_left(self) -> None:
        """``FileError`` naming tensors that were not taken: each would change what is computed."""
        if self._left:
            raise FileError(f"{self._where}: {_UNFIT}: {', '.join(sorted(self._left)[:5])} not expected")
