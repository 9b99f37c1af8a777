"""Straight-through estimates: the entries near a threshold and the kernel that weighs them.

Shape letters: B tokens, F latents, N near-threshold entries.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from monosema.coders.activations.configs import Kernel
from monosema.kernels import Latents, latents_from_mask

_RADIUS: dict[Kernel, float] = {"rectangle": 0.5, "triangle": 1.0, "epanechnikov": 1.0, "gaussian": 4.0}


def reach(bandwidth: float, kernel: Kernel = "rectangle") -> float:
    """How far from a threshold the kernel's support goes."""
    return _RADIUS[kernel] * bandwidth


def near_entries(distance_BF: Tensor, bandwidth: float, kernel: Kernel = "rectangle") -> Latents:
    """Entries of ``distance = pre - θ`` inside the kernel's support ``|distance| < radius · bandwidth``."""
    return latents_from_mask(distance_BF, distance_BF.abs() < reach(bandwidth, kernel))


def kernel_density(distance: Tensor, bandwidth: float, kernel: Kernel = "rectangle") -> Tensor:
    """``K(u)/ε`` with ``u = distance/ε``: the estimate of the Dirac delta at the threshold.

    ``K`` integrates to one: rectangle ``1`` on (-1/2, 1/2), triangle ``1-|u|`` and Epanechnikov ``3/4 (1-u²)`` on
    (-1, 1), gaussian the standard normal density, cut off at 4.
    """
    u = distance / bandwidth
    match kernel:
        case "rectangle":
            density = torch.ones_like(u)
        case "triangle":
            density = 1 - u.abs()
        case "epanechnikov":
            density = 0.75 * (1 - u.square())
        case "gaussian":
            density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
        case _:
            assert_never(kernel)
    return density / bandwidth
