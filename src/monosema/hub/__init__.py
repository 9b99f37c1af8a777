"""Saving and loading dictionaries: the only glue of formats and coders.

``saving`` and ``loading`` walk the formats of ``formats.registry`` and know none of them by name. ``specs`` turns a
dictionary into the formats' currency and back, ``rules`` its activation.
"""

from monosema.hub.loading import load
from monosema.hub.saving import save
from monosema.hub.specs import from_spec, to_spec

__all__ = ["from_spec", "load", "save", "to_spec"]
