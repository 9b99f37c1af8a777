"""Sparse coders: SAEs and transcoders as one module, and the activations that make them differ.

Imports ``kernels`` and ``core``. Start with ``coder`` (the module and its three-call core operation), then
``activations.base`` (the contract of an activation).
"""

from monosema.coders.coder import Encoding, ExtraEntries, SparseCoder
from monosema.coders.config import ActivationConfig, BatchTopK, CoderConfig, Gated, JumpReLU, ReLU, TopK
from monosema.coders.make import SAE, Transcoder
from monosema.kernels import Latents

__all__ = [
    "SAE",
    "ActivationConfig",
    "BatchTopK",
    "CoderConfig",
    "Encoding",
    "ExtraEntries",
    "Gated",
    "JumpReLU",
    "Latents",
    "ReLU",
    "SparseCoder",
    "TopK",
    "Transcoder",
]
