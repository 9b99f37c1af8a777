"""A dictionary as a run takes it over: decoder norms and the first active latents."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from monosema.coders import SparseCoder, TrainableDictionary
from monosema.training.optimizer import renormalise_

START_ROWS, START = 256, 6.0
"""Rows by which a dictionary with a wanted L0 starts at that many times as much."""


def can_fold_norms(coder: TrainableDictionary, norms_are_equal: bool) -> bool:
    """Whether decoder norms can be folded into the encoder without changing which latents are active."""
    if getattr(coder.config, "tied", "none") == "per_target":
        return False
    match coder.config.activation.scale_equivariance():
        case "none":
            return False
        case "common":
            return norms_are_equal
        case "each":
            return True
        case other:
            assert_never(other)


@torch.no_grad()
def make_unit_norm_(coder: TrainableDictionary) -> None:
    """Decoder rows of norm one in place, their norms moved into the encoder; thresholds follow where it is trained."""
    if coder.is_trained:
        coder.fold_W_dec_norm()
    else:
        for part in coder.parts:
            part.coder.W_enc_rows.mul_(part.coder.W_dec.norm(dim=1, keepdim=True))
        renormalise_(coder, torch.ones((), dtype=torch.bool, device=coder.device))


@torch.no_grad()
def bring_decoder_to_size_(coder: TrainableDictionary) -> None:
    """Decoder rows of norm one, or of mean norm one, in place, function and selection unchanged.

    A saved decoder is as large as raw activations make it; learning rates and windows are for scaled ones.
    """
    if can_fold_norms(coder, norms_are_equal=False):
        coder.fold_W_dec_norm()
    elif can_fold_norms(coder, norms_are_equal=True):
        for part in coder.parts:
            mean = part.coder.W_dec.norm(dim=1).mean().clamp(min=1e-8)
            part.coder.scale_latents_(mean.expand(part.coder.d_sae))


@torch.no_grad()
def start_with_(coder: SparseCoder, x: Tensor, l0: float) -> None:
    """Let ``l0`` of the latents of a row of ``x`` be active on average, in place."""
    pre = coder.pre_activations(x.to(coder.dtype), scaled=True)
    n_above = min(pre.numel(), max(1, round(l0 * len(pre))))
    threshold = float(pre.flatten().kthvalue(pre.numel() - n_above + 1).values)
    shift = coder.activation.start_above_(max(0.0, threshold))
    if coder.b_enc is not None:
        coder.b_enc.add_(shift)
