"""File formats of trained dictionaries, all in terms of ``spec.DictionarySpec``: one foreign format per file or folder.

Imports ``core`` only and knows nothing of coders; ``hub`` is the glue. Start with ``spec`` (what a dictionary is, as
plain values and tensors), then ``format`` (what a format must do) and ``registry`` (which formats there are).
``checkpoints`` names the dictionaries of a run.
"""

from monosema.formats.format import Fit, Format
from monosema.formats.registry import register, unregister
from monosema.formats.spec import DictionarySpec, PartSpec, Rule, SiteSpec, TrainedActivation

__all__ = [
    "DictionarySpec",
    "Fit",
    "Format",
    "PartSpec",
    "Rule",
    "SiteSpec",
    "TrainedActivation",
    "register",
    "unregister",
]
