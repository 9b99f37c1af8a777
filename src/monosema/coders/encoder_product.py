"""The encoder's product, plain, compiled, or in low precision with what is chosen rescored.

Shape letters: B tokens, I input width, F latents.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from monosema.coders.activations.base import Activation
from monosema.core.compiling import compiled
from monosema.kernels import sampled_products
from monosema.kernels.precision import product_in

EncoderProduct = Callable[
    [Tensor, "Tensor | None", Tensor, "Tensor | None", "torch.dtype | None"], "tuple[Tensor, Tensor]"
]


def encoder_product(
    x_BI: Tensor, bias_I: Tensor | None, W_enc_FI: Tensor, b_enc_F: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """``x - bias`` and ``(x - bias) W_encᵀ + b_enc``, the product's operands in ``dtype`` where one is given (``W_enc``
    may come in it)."""
    inner = x_BI if bias_I is None else x_BI - bias_I
    pre = inner @ W_enc_FI.T if dtype is None else product_in(inner, W_enc_FI.T, dtype)
    return inner, pre if b_enc_F is None else pre + b_enc_F


def compiled_encoder_product(mode: str) -> EncoderProduct:
    """``encoder_product`` by ``torch.compile``, which joins casts and biases with the product.

    The rest of a coder's step has nothing to compile: what is selected decides its shapes. For the same reason, and
    because a stack reads one result after the next was made, no mode uses CUDA graphs.
    """
    return compiled(encoder_product, mode, dynamic=False)


def rescore_(
    pre_BF: Tensor,
    activation: Activation,
    inner_BI: Tensor,
    W_enc_FI: Tensor,
    b_enc_F: Tensor | None,
    *,
    weights_F: Tensor | None,
    window: float | None,
    noise_BF: Tensor | None,
) -> None:
    """Replace in place the rounded pre-activations of every candidate by those of the float32 weights.

    So low precision only finds candidates: the values that are trained on are those that the saved weights give.
    """
    candidates = activation.candidates(pre_BF, weights_F, window)
    with torch.autocast(pre_BF.device.type, enabled=False):
        for entries in candidates:
            exact = sampled_products(entries, inner_BI, W_enc_FI)
            latents = entries.indices.long()
            places = entries.rows() * entries.d_sae + latents
            if b_enc_F is not None:
                exact = exact + b_enc_F[latents]
            if noise_BF is not None:
                exact = exact + noise_BF.reshape(-1)[places]
            pre_BF.view(-1)[places] = exact
