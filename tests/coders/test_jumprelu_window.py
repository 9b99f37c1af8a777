"""JumpReLU finds active and near-threshold entries in one pass: the same ones as by their definitions."""

from __future__ import annotations

import pytest
import torch

from monosema.coders import SAE, JumpReLU
from monosema.coders.activations.windows import near_entries
from monosema.core.devices import dtype_name
from monosema.kernels import latents_from_mask


@pytest.mark.parametrize("kernel", ["rectangle", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [1e-6, 0.1, 10.0])
def test_selection_is_that_of_the_definitions(kernel, dtype, bandwidth):
    """Among them entries exactly at a threshold, at the window's ends, and a rounding error from them."""
    coder = SAE(4, 64, activation=JumpReLU(bandwidth=bandwidth, kernel=kernel), dtype=dtype_name(dtype))
    activation, generator = coder.activation, torch.Generator().manual_seed(0)
    with torch.no_grad():
        activation.threshold.copy_(torch.rand(64, generator=generator))
        activation.threshold[:8] = 0
    pre = torch.randn(256, 64, generator=generator).to(dtype)
    reach = {"rectangle": 0.5, "gaussian": 4.0}[kernel] * bandwidth
    for row, edge in enumerate((-reach, 0.0, reach)):
        exact = (activation.threshold + edge).detach()
        for far, value in enumerate((exact, exact.nextafter(exact + 1), exact.nextafter(exact - 1))):
            pre[3 * row + far] = value
    with torch.no_grad():
        selection = activation.select(pre)
        distance = pre - activation.threshold
        near, active = near_entries(distance, bandwidth, kernel), (distance > 0) & (pre > 0)
        latents = latents_from_mask(pre, active)
        at_near = latents_from_mask(torch.where(active, pre, 0), distance.abs() < reach)
    for name in ("crow", "indices", "values"):
        assert torch.equal(getattr(selection.near, name), getattr(near, name))
        assert torch.equal(getattr(selection.latents, name), getattr(latents, name))
    assert torch.equal(selection.near_activations, at_near.values)
