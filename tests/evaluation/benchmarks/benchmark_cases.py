"""Dictionaries whose latents are known: axis i of the site is latent i."""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.coders import SAE, ReLU, SparseCoder


def axis_sae(
    width: int, d_sae: int | None = None, *, encoder: Tensor | None = None, decoder: Tensor | None = None
) -> SparseCoder:
    """``f = ReLU(encoder x)``, ``x̂ = decoder' f``; the identity where not given."""
    coder = SAE(width, d_sae or width, activation=ReLU(), b_dec="none", hook_name="site", dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.copy_(torch.eye(coder.d_sae, width) if encoder is None else encoder)
        coder.W_dec.copy_(torch.eye(coder.d_sae, width) if decoder is None else decoder)
    return coder
