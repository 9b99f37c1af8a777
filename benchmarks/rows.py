"""Made-up activations with the shape of real ones: what the step benchmark feeds to every system."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

N_DIRECTIONS = 4096
N_ACTIVE = 24
RANK = 32


def activations(n_rows: int, d_in: int, seed: int = 0) -> Tensor:
    """``[n_rows, d_in]`` float32: a mean, ``N_ACTIVE`` of many sparse directions, a low-rank part, and noise.

    Directions are drawn with frequencies that fall as 1/rank^0.8, so that some latents fire often and many rarely, and
    a few axes carry most of the low-rank variance, as in residual streams. Pure Gaussian rows have neither.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    directions = normalize(normal(N_DIRECTIONS, d_in), dim=1)
    frequency = torch.arange(1, N_DIRECTIONS + 1).float().pow(-0.8)
    places = torch.multinomial(frequency.expand(n_rows, -1), N_ACTIVE, generator=generator)
    strengths = 0.5 + torch.rand(n_rows, N_ACTIVE, generator=generator)
    sparse = embedding_bag(places, directions, per_sample_weights=strengths, mode="sum")
    falling = torch.arange(1, RANK + 1).float().pow(-0.5)
    low_rank = (normal(n_rows, RANK) * falling) @ normalize(normal(RANK, d_in), dim=1)
    return sparse + low_rank + normal(d_in) / math.sqrt(d_in) + 0.3 * normal(n_rows, d_in) / math.sqrt(d_in)
