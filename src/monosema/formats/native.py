"""monosema's own folder format, for dictionaries that SAELens has no class for.

``cfg.json`` names the ``architecture`` "monosema", which SAELens refuses, and holds the dictionary's plain config;
``monosema.safetensors`` holds its tensors by parameter name; ``sparsity.safetensors`` is as in SAELens' format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from monosema.core.errors import FileError
from monosema.core.files import read_json, write_atomically, write_json
from monosema.core.plain import require_version
from monosema.formats.checks import checked_density, checked_metadata
from monosema.formats.tensors import read_tensors

CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE = "cfg.json", "monosema.safetensors", "sparsity.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE)
"""All that a folder of this format holds."""
ARCHITECTURE = "monosema"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class NativeSpec:
    """A dictionary as its plain config and its tensors."""

    kind: str
    """``coder`` or ``stack``."""
    config: Mapping[str, Any]
    """The plain config of the coder or stack."""
    tensors: Mapping[str, Tensor]
    """Parameters and buffers by name."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from."""
    log10_density: Tensor | None = None
    """[d_sae] log10 of the firing density, where known."""


def write(spec: NativeSpec, folder: Path) -> None:
    """Write ``spec`` into the existing ``folder``."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in spec.tensors.items()})
    write_atomically(folder / WEIGHTS_FILE, data)
    if spec.log10_density is not None:
        density = spec.log10_density.detach().cpu().float().contiguous()
        write_atomically(folder / SPARSITY_FILE, save({"sparsity": density}))
    body = {"architecture": ARCHITECTURE, "version": VERSION, "kind": spec.kind, "dictionary": dict(spec.config)}
    write_json(folder / CONFIG_FILE, {**body, "metadata": dict(spec.metadata)})


def is_native(folder: Path) -> bool:
    """Whether ``folder`` holds a dictionary in this format."""
    config = read_json(folder / CONFIG_FILE)
    return isinstance(config, dict) and config.get("architecture") == ARCHITECTURE


def read(folder: Path) -> NativeSpec:
    """The dictionary in ``folder``; ``FileError`` where files are missing or damaged."""
    config = read_json(folder / CONFIG_FILE)
    require_version(config, VERSION, folder / CONFIG_FILE)
    kind, plain = config.get("kind"), config.get("dictionary")
    if kind not in ("coder", "stack") or not isinstance(plain, dict):
        raise FileError(f"{folder / CONFIG_FILE} does not describe a dictionary")
    metadata = checked_metadata(config.get("metadata"), folder / CONFIG_FILE)
    return NativeSpec(
        kind=kind,
        config=plain,
        tensors=read_tensors(folder / WEIGHTS_FILE),
        metadata=metadata,
        log10_density=checked_density(folder / SPARSITY_FILE),
    )
