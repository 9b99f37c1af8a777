"""Sparse coders: SAEs, transcoders, crosscoders and stacks of them, and the activations that make them differ.

Imports ``kernels`` and ``core``. Start with ``dictionary`` (the interface that every other room uses), then ``coder``
(the module and its three-call core operation), ``activations.base`` (the contract of an activation) and ``backward``
(the third call, contribution by contribution).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import open_exports

_HOMES = {
    "monosema.coders.coder": ("SparseCoder",),
    "monosema.coders.activations.family": ("ActivationConfig", "FixedCount", "register_activation"),
    "monosema.coders.config": ("CoderConfig", "StackConfig"),
    "monosema.coders.dictionary": ("Dictionary",),
    "monosema.coders.encoding": ("Encoding", "Everywhere", "ExtraEntries", "LatentGradients"),
    "monosema.coders.make": ("SAE", "CLT", "Crosscoder", "Transcoder"),
    "monosema.coders.scaling": ("Scaling",),
    "monosema.coders.site_transform": ("SiteTransform",),
    "monosema.coders.sites": ("SiteRef",),
    "monosema.coders.stack": ("CrossLayerTranscoder",),
    "monosema.coders.trainable": ("TrainableDictionary",),
    "monosema.kernels": ("Latents",),
}
__getattr__ = open_exports(__name__, _HOMES, "monosema.coders.activations.configs")

if TYPE_CHECKING:
    from monosema.coders.activations.configs import *  # noqa: F403
    from monosema.coders.activations.family import ActivationConfig, FixedCount, register_activation
    from monosema.coders.coder import SparseCoder
    from monosema.coders.config import CoderConfig, StackConfig
    from monosema.coders.dictionary import Dictionary
    from monosema.coders.encoding import Encoding, Everywhere, ExtraEntries, LatentGradients
    from monosema.coders.make import CLT, SAE, Crosscoder, Transcoder
    from monosema.coders.scaling import Scaling
    from monosema.coders.site_transform import SiteTransform
    from monosema.coders.sites import SiteRef
    from monosema.coders.stack import CrossLayerTranscoder
    from monosema.coders.trainable import TrainableDictionary
    from monosema.kernels import Latents
