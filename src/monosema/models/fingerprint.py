"""A fingerprint of a model's weights: what tells two models of one name apart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_MOST_WHOLE = 2**23
"""Parameters of a model that is read whole."""
_SAMPLED = 2**14
"""At least so many values are read of each parameter of a larger model."""


def weights_fingerprint(model: nn.Module) -> str | None:
    """Sixteen hexadecimal digits that are equal for equal weights; None where weights cannot be read.

    They cannot where some are on the meta device (a model without weights, or offloaded ones) or are tensors of a class
    of their own (sharded or quantized by another library).

    It is the start of the sha256 of every parameter's name, shape and values, in the order of their names. Values are
    rounded to bfloat16, so the same weights loaded as float64, float32 or bfloat16 have one fingerprint, on any device.
    A model of at most 2^23 parameters is read whole. Of a larger one, a parameter of n values contributes every
    ``(n // 2^14) | 1``-th, so a change of a few values may go unseen there. The step is odd so that it does not stay in
    some columns of a matrix. Weights loaded as float16 are rounded twice, and quantized weights are other numbers: they
    have fingerprints of their own (see ``comparable_dtypes``).
    """
    parameters = sorted(model.named_parameters(), key=lambda pair: pair[0])
    if any(parameter.is_meta or type(parameter.data) is not Tensor for _, parameter in parameters):
        return None
    is_small = sum(parameter.numel() for _, parameter in parameters) <= _MOST_WHOLE
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        step = 1 if is_small else parameter.numel() // _SAMPLED | 1
        digest.update(_bytes(parameter.detach().reshape(-1)[::step]))
    return digest.hexdigest()[:16]


def comparable_dtypes(one: str | None, other: str | None) -> bool:
    """Whether weights loaded in these dtypes (``float32``) have one fingerprint where they are the same."""
    wide = {"float64", "float32", "bfloat16"}
    return one == other or {one, other} <= wide


def _bytes(values: Tensor) -> bytes:
    """``values`` rounded to bfloat16 as bytes; those of other types than floating point as they are."""
    if values.is_floating_point():
        values = values.to(torch.bfloat16)
    return values.contiguous().cpu().view(torch.uint8).numpy().tobytes()
