"""Sparse coders: SAEs and transcoders as one module, and the activations that make them differ.

Imports ``kernels`` and ``core``. Start with ``coder`` (the module and its three-call core operation), then
``activations.base`` (the contract of an activation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.coders.coder": ("Encoding", "ExtraEntries", "SparseCoder"),
    "monosema.coders.config": ("ActivationConfig", "BatchTopK", "CoderConfig", "Gated", "JumpReLU", "ReLU", "TopK"),
    "monosema.coders.make": ("SAE", "Transcoder"),
    "monosema.kernels": ("Latents",),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.coders.coder import Encoding, ExtraEntries, SparseCoder
    from monosema.coders.config import ActivationConfig, BatchTopK, CoderConfig, Gated, JumpReLU, ReLU, TopK
    from monosema.coders.make import SAE, Transcoder
    from monosema.kernels import Latents
