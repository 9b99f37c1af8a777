"""File formats of trained dictionaries, all in terms of ``spec.DictionarySpec``: one foreign format per file or folder.

Imports ``core`` only and knows nothing of coders; ``hub`` is the glue. Start with ``spec`` (what a dictionary is, as
plain values and tensors), then ``format`` (what a format must do) and ``registry`` (which formats there are).
``checkpoints`` names the dictionaries of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.formats.format": ("Fit", "Format"),
    "monosema.formats.registry": ("register", "unregister"),
    "monosema.formats.spec": ("DictionarySpec", "PartSpec", "Rule", "SiteSpec", "TrainedActivation"),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.formats.format import Fit, Format
    from monosema.formats.registry import register, unregister
    from monosema.formats.spec import DictionarySpec, PartSpec, Rule, SiteSpec, TrainedActivation
