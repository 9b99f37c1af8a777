"""What a dictionary's ``cfg.json`` and density say beside its weights, refused where it is of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from monosema.core.errors import FileError
from monosema.formats.tensors import read_tensors

_MAPPINGS = ("model", "models", "tokens", "stream", "training", "coder", "saelens", "site_transform")
"""Parts of the metadata that are records of their own where they are there at all."""


def checked_metadata(values: Any, where: Path) -> Mapping[str, Any]:
    """The metadata ``values`` in the file ``where``; ``FileError`` where it, or a part of it, is no mapping."""
    metadata = mapping_in({"metadata": values}, "metadata", where)
    models = [metadata.get("model"), *mapping_in(metadata, "models", where).values()]
    for name in _MAPPINGS:
        mapping_in(metadata, name, where)
    for model in models:
        mapping_in({"model": model}, "model", where)
    return metadata


def mapping_in(values: Mapping[str, Any], name: str, where: Path) -> Mapping[str, Any]:
    """The mapping ``values[name]``, empty where it is missing; ``FileError`` for anything else."""
    value = values.get(name)
    if value and not isinstance(value, dict):
        raise FileError(f"{where}: {name} must be a mapping, got a {type(value).__name__}")
    return value or {}


def text_in(values: Mapping[str, Any], name: str, where: Path) -> str | None:
    """The text ``values[name]``, None where it is missing; ``FileError`` for anything else."""
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise FileError(f"{where}: {name} must be text, got a {type(value).__name__}")
    return value


def number_in(values: Mapping[str, Any], name: str, where: Path) -> int | None:
    """The whole number ``values[name]``, None where it is missing; ``FileError`` for anything else."""
    value = values.get(name)
    if value is not None and type(value) is not int:
        raise FileError(f"{where}: {name} must be a whole number, got {value!r:.80}")
    return value


def checked_density(path: Path) -> Tensor | None:
    """``sparsity [d_sae]`` in ``path``; None where there is no such file."""
    if not path.exists():
        return None
    density = read_tensors(path).get("sparsity")
    if density is not None and (density.ndim != 1 or not density.is_floating_point()):
        raise FileError(f"{path} must hold one number for each latent, got {density.dtype} {list(density.shape)}")
    return density
