"""Replacing dead latents by inputs that are badly reconstructed.

Shape letters: n candidates, I input width, O output width, D latents replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import SparseCoder
from monosema.kernels import decode


@dataclass(frozen=True)
class Candidates:
    """Inputs that a replaced latent may be made of."""

    x_NI: Tensor
    """Scaled inputs."""
    y_NO: Tensor
    """Scaled targets."""
    losses_N: Tensor
    """Their losses, by which latents are drawn."""


@torch.no_grad()
def squared_errors(coder: SparseCoder, x_NI: Tensor, y_NO: Tensor) -> Tensor:
    """``‖y - ŷ‖²`` of each row, scaled as for training, under the training rule: ``[n]``."""
    errors = []
    for x, y in zip(x_NI.split(4096), y_NO.split(4096), strict=True):
        out = decode(coder.encode_select(x, scaled=True).latents, coder.W_dec)
        errors.append((y - out - coder.offset(x)).square().sum(1))
    return torch.cat(errors)


@torch.no_grad()
def replace_latents_(
    coder: SparseCoder,
    dead: Tensor,
    candidates: Candidates,
    scale: float,
    generator: torch.Generator,
    *,
    power: float = 2.0,
) -> None:
    """Give the latents ``dead [D]`` new weights in place.

    For each, a candidate is drawn with probability ∝ loss to ``power``. With u the unit vector of its input less the
    input bias: encoder row ``u · scale · (mean norm of the living encoder rows)``, decoder row the unit vector of its
    target less ``b_dec`` (times the mean living norm), encoder bias zero, own parameters of the activation as at the
    start.
    """
    weights = candidates.losses_N.double().pow(power)
    if not bool((weights > 0).any()):
        weights = torch.ones_like(weights)
    picked = torch.multinomial(weights.cpu(), dead.numel(), replacement=True, generator=generator).to(dead.device)
    x, y = candidates.x_NI[picked], candidates.y_NO[picked]
    x = x if coder.input_bias is None else x - coder.input_bias
    y = y if coder.b_dec is None else y - coder.b_dec
    living = torch.ones(coder.d_sae, dtype=torch.bool, device=dead.device)
    living[dead] = False
    living = living if bool(living.any()) else torch.ones_like(living)
    encoder_norm = coder.W_enc_rows[living].norm(dim=1).mean()
    decoder_norm = coder.W_dec[living].norm(dim=1).mean()
    coder.W_enc_rows[dead] = _unit(x) * scale * encoder_norm
    coder.W_dec[dead] = _unit(y) * decoder_norm
    if coder.b_enc is not None:
        coder.b_enc[dead] = 0
    coder.activation.reset_latents_(dead)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-8)
