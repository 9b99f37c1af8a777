"""Per-token scaling: what each token of a site is scaled by before it is read, and how that is undone.

- ``constant_norm``: ``u = x √d / ‖x‖``; undone by ``v ‖x‖ / √d``.
- ``layer_norm``: ``u = (x - μ) / (σ + 1e-5)`` with the token's mean μ over the d dimensions and its deviation
  ``σ = ‖x - μ‖ / √(d - 1)``; undone by ``v σ + μ``.

Neither is linear, so neither can be folded into weights: both stay in the coder. A token of norm (or deviation) zero
becomes zero. These are SAELens' ``constant_norm_rescale`` and ``layer_norm``.

Shape letters: D width of all sites side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders.config import TokenScaling

_EPSILON, _SMALLEST_NORM = 1e-5, 1e-12


@dataclass(frozen=True)
class ScaledTokens:
    """Tokens that were scaled, and what undoes it."""

    u: Tensor
    """``[..., D]``: scaled, in the dtype of what came."""
    spread: Tensor
    """``[..., 1]``, or ``[..., D]`` where there are several sites; float32 at least."""
    shift: Tensor | None
    """The same shape; None for zero."""

    def undo(self, v: Tensor) -> Tensor:
        """``v · spread + shift`` for predictions ``v [..., D]`` of ``u``."""
        raw = v * self.spread
        return (raw if self.shift is None else raw + self.shift).to(v.dtype)


def scale_tokens(x: Tensor, kind: TokenScaling, widths: Sequence[int]) -> ScaledTokens:
    """Scale ``x [..., D]``, each site (of ``widths``, side by side) by itself; autograd passes through."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    sites = [_scale_site(part, kind) for part in wide.split(list(widths), dim=-1)]
    if len(sites) == 1:
        return ScaledTokens(sites[0].u.to(x.dtype), sites[0].spread, sites[0].shift)
    spread = torch.cat([site.spread.expand_as(site.u) for site in sites], dim=-1)
    shifts = [site.shift.expand_as(site.u) for site in sites if site.shift is not None]
    u = torch.cat([site.u for site in sites], dim=-1)
    return ScaledTokens(u.to(x.dtype), spread, torch.cat(shifts, dim=-1) if shifts else None)


def _scale_site(x: Tensor, kind: TokenScaling) -> ScaledTokens:
    if kind == "constant_norm":
        norm, root = torch.linalg.vector_norm(x, dim=-1, keepdim=True), math.sqrt(x.shape[-1])
        return ScaledTokens(x / norm.clamp(min=_SMALLEST_NORM) * root, norm / root, None)
    if kind != "layer_norm":
        raise AssertionError(f"there is no scaling {kind!r} of a token")
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)
    return ScaledTokens(centred / (deviation + _EPSILON), deviation, mean)
