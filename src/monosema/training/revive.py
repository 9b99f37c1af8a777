"""Dead latents: which they are, and AuxK, which brings them back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Encoding, ExtraEntries, SparseCoder
from monosema.kernels import Latents, decode, latents_from_pairs
from monosema.training.config import AuxK


@dataclass(frozen=True)
class AuxLoss:
    """AuxK's loss and the entries that it trains."""

    value: Tensor
    """0-d: ``α · mean ‖e - ê‖²``."""
    entries: ExtraEntries
    """Active dead latents and their output gradient."""


def auxk_loss(coder: SparseCoder, encoding: Encoding, error_BO: Tensor, dead_F: Tensor, config: AuxK) -> AuxLoss | None:
    """``α · mean over tokens of ‖e - ê‖²``; None where no latent is dead.

    ``e = y - ŷ`` is a constant; ``ê`` decodes, without bias, the ``min(k, number dead)`` largest positive
    pre-activations of dead latents of each token.
    """
    dead = dead_F.nonzero().squeeze(1)
    if dead.numel() == 0:
        return None
    n_tokens = error_BO.shape[0]
    k = min(config.k or default_k(coder), dead.numel())
    values, places = encoding.pre_BF[:, dead].topk(k, dim=1)
    positive = values > 0
    tokens = torch.arange(n_tokens, device=dead.device).unsqueeze(1).expand_as(places)
    latents: Latents = latents_from_pairs(
        tokens[positive], dead[places[positive]], values[positive], n_tokens, coder.d_sae
    )
    left = error_BO - decode(latents, coder.W_dec)
    value = config.coefficient * left.square().sum() / max(1, n_tokens)
    return AuxLoss(value, ExtraEntries(latents, left * (-2 * config.coefficient / max(1, n_tokens))))


def default_k(coder: SparseCoder) -> int:
    """Half the output width, at most 512."""
    return max(1, min(512, coder.d_out // 2))


def dead_after(config: AuxK | None, n_tokens: int) -> int:
    """Tokens without firing after which a latent counts as dead in a run of ``n_tokens``."""
    if config is not None and config.dead_after_tokens is not None:
        return config.dead_after_tokens
    return max(1, min(10_000_000, n_tokens // 10))
