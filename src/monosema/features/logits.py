"""Which tokens a latent's decoder direction promotes and suppresses.

Shape letters: F latents, V vocabulary, N tokens kept per end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import UserError
from monosema.models import LanguageModel

_LOGITS_PER_STEP = 2**25
_ADDED_SITES = ("hook_embed", "hook_attn_out", "hook_mlp_out")
"""What is added to the residual stream."""
_RESIDUAL_SITES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", *_ADDED_SITES)


@dataclass(frozen=True, eq=False)
class ExtremeLogits:
    """The tokens with the largest and the smallest logit-lens value of each latent's direction: its decoder row, or in
    a cross-layer transcoder the sum of its decoder rows over the sites that it writes."""

    top_tokens: Tensor
    """[F, N] int32 token ids, largest value first; the lower id among equals."""
    top_values: Tensor
    """[F, N] float32: ``logit_lens(direction)`` there, for an activation of 1 (on a token that ``token_scaling`` leaves
    as it is: a larger token's output is scaled back by its own size)."""
    bottom_tokens: Tensor
    """[F, N] int32 token ids, smallest value first."""
    bottom_values: Tensor
    """[F, N] float32."""


@torch.no_grad()
def extreme_logits(coder: Dictionary, model: LanguageModel, n: int) -> ExtremeLogits | str:
    """``ExtremeLogits`` of every latent, or the reason why there are none.

    Decoder rows are logit-lens directions where the coder writes one site in the basis of the residual stream: the
    stream itself or what a branch adds to it. A cross-layer transcoder writes what several branches add. The stream
    sums these, so a latent's direction is the sum of its decoder rows: its direct effect on the logits, without what
    later layers make of it.
    """
    if problem := _no_direction(coder):
        return f"no logits: {problem}"
    n = min(n, model.vocab_size)
    parts: list[tuple[Tensor, ...]] = []
    try:
        for directions in _directions(coder):
            for rows in directions.split(max(1, _LOGITS_PER_STEP // model.vocab_size)):
                parts.append(_extremes(model.logit_lens(rows.to(model.device)), n))
    except UserError as error:
        return f"no logits: {error}"
    return ExtremeLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _no_direction(coder: Dictionary) -> str | None:
    """Why latents have no direction in the residual stream; None where they have one."""
    if not coder.has_decoder_rows:
        return f"a {coder.variant_words} has no decoder rows"
    sites = [str(site) for site in coder.writes]
    if not coder.is_layered:
        if len(sites) != 1 or sites[0].rpartition(".")[2] not in _RESIDUAL_SITES:
            return f"{coder.hook_name_out or ''!r} is not a site of the residual stream, which the unembedding reads"
        return None
    others = [each for each in sites if each.rpartition(".")[2] not in _ADDED_SITES]
    if others:
        return f"{others[0]!r} is not added to the residual stream, so the sites that a latent writes have no sum there"
    if len(models := {each.model for each in coder.writes}) > 1:
        return f"the sites written belong to several models ({', '.join(sorted(models))})"
    return None


def _directions(coder: Dictionary) -> Iterator[Tensor]:
    """``[F of the part, D]`` of each part: the decoder row, summed over the sites written."""
    if not coder.is_layered:
        yield coder.decoder_rows(range(coder.d_sae)).detach()
        return
    width = coder.write_widths[0]
    for part in coder.parts:
        W_dec = part.coder.decoder_rows(range(len(part.latents))).detach()
        n_sites = W_dec.shape[1] // width  # one where a single decoder serves all of part.writes
        yield W_dec.unflatten(1, (n_sites, width)).sum(1) * len(part.writes)


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
