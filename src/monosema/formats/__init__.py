"""File formats of trained dictionaries: one foreign format per file, all in terms of ``spec.CoderSpec``.

Imports ``core`` only; knows nothing of coders. ``hub`` is the glue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {"monosema.formats.spec": ("CoderSpec",)}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.formats.spec import CoderSpec
