"""An activation of another package: a squared ReLU. It is registered within ``registered`` only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import pytest
import torch
from torch import Tensor

from monosema.coders.activations.base import Activation, ActivationGradients, ChannelGradients, Selection
from monosema.coders.activations.family import ActivationConfig, Equivariance, register_activation
from monosema.kernels import Latents, select_above


@dataclass(frozen=True, kw_only=True)
class SquaredReLU(ActivationConfig):
    """``f = slope · max(pre, 0)²``; sparse only through a sparsity loss."""

    default_sparsity = {"kind": "L1", "target_l0": 6.0}  # noqa: RUF012
    decoder_init_norm = 0.5

    slope: float = 1.0
    """What the square is multiplied by."""

    def build(self, d_sae: int) -> Activation:
        return SquaredReLUActivation(self)

    def scale_equivariance(self) -> Equivariance:
        return "none"


@final
class SquaredReLUActivation(Activation):
    """``f = slope · max(pre, 0)²``."""

    def __init__(self, config: SquaredReLU):
        super().__init__()
        self.slope = config.slope

    def select(self, pre_BF: Tensor, weights_F: Tensor | None = None, window: float | None = None) -> Selection:
        assert window is None, "the test trains with no loss on the number of active latents"
        return Selection(self.infer(pre_BF))

    def infer(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Latents:
        latents = select_above(pre_BF, 0.0)
        return replace(latents, values=self.slope * latents.values.square())

    def infer_dense(self, pre_BF: Tensor, weights_F: Tensor | None = None) -> Tensor:
        return self.slope * pre_BF.clamp(min=0).square()

    def backward(self, selection: Selection, gradients: ChannelGradients) -> ActivationGradients:
        pre = (selection.latents.values / self.slope).sqrt()
        return ActivationGradients((selection.latents.with_values(gradients.latents * 2 * self.slope * pre),))

    def scale_latents_(self, factors_F: Tensor) -> None:
        assert torch.allclose(factors_F, torch.ones_like(factors_F)), "no factor can be taken into a square"


@contextmanager
def registered() -> Iterator[None]:
    """Within it, ``SquaredReLU`` is registered; afterwards the registry is as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationConfig, "_kinds", dict(ActivationConfig.kinds()))
        register_activation(SquaredReLU)
        yield


def rows(n: int, width: int = 8) -> Tensor:
    """Sums of a few of 2·width fixed directions: ``[n, width]``."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
    active = torch.rand(n, 2 * width, generator=generator, dtype=torch.float64)
    return (active * (torch.rand(n, 2 * width, generator=generator) < 0.25)) @ directions
