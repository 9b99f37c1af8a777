"""Dictionaries in a forward pass.

Its job: adapt dictionaries to the protocol that ``models.splice`` states, so that the one splice puts them in the place
of sites. Start reading in ``attached.py``; ``forms.py`` holds the two forms of latents, sparse ones for runs that edit
none and dense ones for edits and gradients; ``directions.py`` is the shortcut where only the change of a few latents
matters.

May import: ``core``, ``kernels``, ``coders``, ``models``.
"""

from monosema.splicing.attached import Attached
from monosema.splicing.directions import LatentDirections
from monosema.splicing.forms import DENSE, SPARSE, LatentForm

__all__ = ["DENSE", "SPARSE", "Attached", "LatentDirections", "LatentForm"]
