"""What several formats have in common: a first look into ``cfg.json``, and the densities of latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from monosema.core.errors import FileError, UserError
from monosema.core.files import read_json, write_atomically
from monosema.core.tensors import read_tensors

CONFIG_FILE, SPARSITY_FILE = "cfg.json", "sparsity.safetensors"


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
