"""Which tokens a latent's decoder direction promotes and suppresses.

Shape letters: F latents, V vocabulary, N tokens kept per end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary, SparseCoder
from monosema.core.errors import UserError
from monosema.models import LanguageModel

_LOGITS_PER_STEP = 2**25
_RESIDUAL_SITES = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True, eq=False)
class ExtremeLogits:
    """The tokens with the largest and the smallest logit-lens value of each decoder row."""

    top_tokens: Tensor
    """[F, N] int32 token ids, largest value first; the lower id among equals."""
    top_values: Tensor
    """[F, N] float32: ``logit_lens(W_dec)`` there, for an activation of 1 (on a token that ``token_scaling`` leaves as
    it is: a larger token's output is scaled back by its own size)."""
    bottom_tokens: Tensor
    """[F, N] int32 token ids, smallest value first."""
    bottom_values: Tensor
    """[F, N] float32."""


@torch.no_grad()
def extreme_logits(coder: Dictionary, model: LanguageModel, n: int) -> ExtremeLogits | str:
    """``ExtremeLogits`` of every latent, or the reason why there are none.

    Decoder rows are logit-lens directions where the coder writes one site in the basis of the residual stream: the
    stream itself or what a branch adds to it.
    """
    site = coder.hook_name_out or ""
    if not isinstance(coder, SparseCoder) or site.rpartition(".")[2] not in _RESIDUAL_SITES or "+" in site:
        return f"no logits: {site!r} is not a site of the residual stream, which the unembedding reads"
    n = min(n, model.vocab_size)
    parts: list[tuple[Tensor, ...]] = []
    try:
        for rows in coder.W_dec.detach().split(max(1, _LOGITS_PER_STEP // model.vocab_size)):
            parts.append(_extremes(model.logit_lens(rows.to(model.device)), n))
    except UserError as error:
        return f"no logits: {error}"
    return ExtremeLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _extremes(logits_RV: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top, bottom = _ordered_top(logits_RV, n), _ordered_top(-logits_RV, n)
    return (
        top.int().cpu(),
        logits_RV.gather(1, top).float().cpu(),
        bottom.int().cpu(),
        logits_RV.gather(1, bottom).float().cpu(),
    )


def _ordered_top(values_RV: Tensor, n: int) -> Tensor:
    """[R, n] int64 indices of the largest values, equal ones by index."""
    chosen = values_RV.topk(n, dim=1).indices.sort(dim=1).values
    order = values_RV.gather(1, chosen).sort(dim=1, descending=True, stable=True).indices
    return chosen.gather(1, order)
