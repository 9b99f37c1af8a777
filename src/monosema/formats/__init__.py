"""File formats of trained dictionaries: one foreign format per file, all in terms of ``spec.CoderSpec``.

Imports ``core`` only; knows nothing of coders. ``hub`` is the glue.
"""

from monosema.formats.spec import CoderSpec

__all__ = ["CoderSpec"]
