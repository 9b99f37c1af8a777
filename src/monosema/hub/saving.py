"""``save``: a dictionary as a folder of one of the known formats."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import DataError, FileError, ShapeError
from monosema.core.files import atomic_folder
from monosema.core.finite import all_finite
from monosema.formats import registry
from monosema.hub.specs import to_spec


def save(
    coder: Dictionary,
    folder: str | os.PathLike[str],
    *,
    log10_density: Tensor | None = None,
    format: str | None = None,
) -> Path:
    """Write ``coder`` as a folder that ``load`` reads, and SAELens too where it has such a class.

    ``log10_density [d_sae]`` are the firing densities; by default those that the dictionary carries
    (``metadata["log10_density"]``, where it was loaded with some or trained here). ``format`` is the name of a format;
    by default SAELens' (``"saelens"``) where it can hold the dictionary, and the library's own (``"monosema"``)
    elsewhere. A format that cannot hold it is refused with ``ConfigError``, which says why.
    Selection rules with one threshold (BatchTopK) are written to SAELens' as ``jumprelu`` with it. The folder appears
    whole or not at all. It takes the place of a dictionary saved there before; a folder that holds anything else is
    refused with ``FileError``, and a weight that is not finite with ``DataError``, before anything is written.
    """
    target = Path(folder)
    _require_finite(coder)
    _require_replaceable(target)
    density = coder.metadata.get("log10_density") if log10_density is None else log10_density
    if density is not None and tuple(density.shape) != (coder.d_sae,):
        raise ShapeError(
            f"log10_density must have a number for each of {coder.d_sae} latents, got {list(density.shape)}"
        )
    spec = to_spec(coder, density)
    writer = registry.writer(spec, format)
    with atomic_folder(target) as temporary:
        writer.write(spec, temporary)
    return target


def _require_finite(coder: Dictionary) -> None:
    """Refuse weights that no reader takes."""
    for name, value in (*coder.named_parameters(), *coder.named_buffers()):
        if not all_finite(value):
            raise DataError(
                f"the dictionary's {name} holds values that are not finite, so nothing was saved. Look for rows of "
                "extreme size (outlier_norm_multiple leaves them out of training), a learning rate that is too large, "
                "or weights that were damaged when they were set"
            )


def _require_replaceable(target: Path) -> None:
    """Refuse to take the place of anything but a saved dictionary."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileError(f"{target} is a file; save the dictionary under another name")
    own = registry.may_replace(target)
    others = sorted(path.name for path in target.iterdir() if not registry.is_one_of(path.name, own))
    if others:
        shown = ", ".join(others[:3])
        raise FileError(f"{target} holds more than a dictionary ({shown}); save it to a new folder, say {target}/coder")
