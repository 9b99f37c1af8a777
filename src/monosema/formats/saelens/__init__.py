"""SAELens' folder format (6.54.12): ``cfg.json``, ``sae_weights.safetensors``, ``sparsity.safetensors``.

What SAELens has a class for is written exactly as SAELens would, plus a ``monosema`` block in ``cfg.json`` that it
ignores. What it has no class for gets an ``architecture`` it refuses, never one it misreads. One head of a site,
``blocks.2.attn.hook_z[3]`` here, is the site and a ``hook_head_index`` there. ``read`` and ``write`` are the two
directions, ``names`` what they share, ``processing`` how a model's weights were changed before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from monosema.formats.format import Fit
from monosema.formats.saelens import read, write
from monosema.formats.saelens.names import NAME, WEIGHTS_FILE
from monosema.formats.saelens.processing import KWARGS, written_kwargs
from monosema.formats.saelens.write import recorded_metadata
from monosema.formats.shared import CONFIG_FILE, SPARSITY_FILE
from monosema.formats.spec import DictionarySpec

__all__ = ["FORMAT", "KWARGS", "recorded_metadata", "written_kwargs"]


@final
@dataclass(frozen=True)
class SAELensFormat:
    """A folder of SAELens'. It claims every folder with a ``cfg.json``, so that it is asked after all others."""

    name: str = NAME
    files: Mapping[str, str] = field(
        default_factory=lambda: {
            CONFIG_FILE: "a dictionary's kind, widths, activation, sites and scaling; its metadata is kept as it is, "
            "and MODEL, TEXT and STREAM of it are used by those who ask for its model and text",
            WEIGHTS_FILE: "a dictionary's tensors",
            SPARSITY_FILE: "densities of latents",
        }
    )

    def claims(self, place: Path) -> bool:
        return (place / CONFIG_FILE).exists()

    def read(self, place: Path) -> DictionarySpec:
        return read.read(place)

    def can_hold(self, spec: DictionarySpec) -> Fit:
        return write.can_hold(spec)

    def write(self, spec: DictionarySpec, folder: Path) -> None:
        write.write(spec, folder)


FORMAT = SAELensFormat()
