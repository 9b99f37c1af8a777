"""The sparse-connection loss: a transcoder that connects sparsely to a given SAE's latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from monosema.core.errors import ConfigError
from monosema.training.term import Batch, OnBatch, OnPart, TermContext
from monosema.training.terms import SparseConnection


@final
@dataclass(frozen=True)
class ConnectionTerm:
    """``λ · mean over i of Σ_j |⟨d_i, W_dec_j⟩|`` of the SAE's directions ``d [n, d_out]``."""

    config: SparseConnection
    """λ."""
    directions: Tensor
    """``[n, d_out]``."""
    unit_norm: bool
    """Whether the part of the gradient along decoder rows is left out."""
    name: str = SparseConnection.name
    """Of the term."""

    @classmethod
    def of(cls, config: SparseConnection, context: TermContext) -> ConnectionTerm:
        """Raises ``ConfigError`` without the SAE's directions."""
        if context.directions is None:
            raise ConfigError("sparse_connection: the SAE's directions are missing; ms.train loads them")
        return cls(config, context.directions, context.unit_norm)

    def on(self, batch: Batch) -> OnBatch:
        """All of it is asked of the dictionary's one part."""
        decoder = batch.dictionary.parts[0].coder.W_dec
        return OnBatch(of_part=lambda number: self._of(decoder))

    def _of(self, decoder: Tensor) -> OnPart:
        with torch.autocast(decoder.device.type, enabled=False):
            share, value = self.config.coefficient / len(self.directions), decoder.new_zeros(())
            gradient = torch.zeros_like(decoder)
            for block in self.directions.to(decoder).split(max(1, 2**24 // len(decoder))):
                products = decoder @ block.T
                value += share * products.abs().sum()
                gradient.addmm_(products.sign_(), block, alpha=share)
            if self.unit_norm:
                gradient -= (gradient * decoder).sum(1, keepdim=True) * decoder
        return OnPart(value=value, parameters={"W_dec": gradient})
