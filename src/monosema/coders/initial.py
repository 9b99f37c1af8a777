"""Starting weights of a coder, drawn from named random streams."""

from __future__ import annotations

import torch
from torch import Tensor

from monosema.coders.config import CoderConfig
from monosema.core.seeds import random_stream


def initial_weights(config: CoderConfig) -> tuple[Tensor, Tensor]:
    """Encoder rows ``[d_sae, d_in]`` of norm one and decoder rows ``[d_sae, d_out]`` of ``decoder_init_norm``."""
    directions = _rows(config.d_sae, config.d_out, config.seed, "W_dec", config.decoder_init == "orthogonal")
    reconstructs = config.hook_name == config.hook_name_out and config.d_in == config.d_out and not config.skip
    transpose = config.encoder_init == "transpose" or (
        config.encoder_init == "auto" and reconstructs and config.decoder_init != "zeros"
    )
    encoder = directions.clone() if transpose else _rows(config.d_sae, config.d_in, config.seed, "W_enc", False)
    decoder = torch.zeros_like(directions) if config.decoder_init == "zeros" else directions * config.norm_at_start
    if config.causal:
        zero_acausal_(encoder, decoder, config)
        encoder /= encoder.norm(dim=1, keepdim=True)
        decoder *= config.norm_at_start / decoder.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return encoder, decoder


def zero_acausal_(encoder_FI: Tensor, decoder_FO: Tensor, config: CoderConfig) -> None:
    """Zero in place what a weakly causal crosscoder has not: reads above a latent's own site, writes below it.

    Latent i belongs to site ``⌊i · S / d_sae⌋`` of S.
    """
    widths = config.read_widths
    group_F = torch.arange(config.d_sae, device=encoder_FI.device) * len(widths) // config.d_sae
    for site, (reads, writes) in enumerate(zip(encoder_FI.split(widths, 1), decoder_FO.split(widths, 1), strict=True)):
        reads[group_F < site] = 0
        writes[group_F > site] = 0


def _rows(n_rows: int, width: int, seed: int, name: str, orthogonal: bool) -> Tensor:
    # float32 whatever torch's default dtype is: the same seed must draw the same numbers
    rows = torch.randn(n_rows, width, generator=random_stream(seed, "coder", name), dtype=torch.float32)
    if orthogonal:
        blocks = [torch.linalg.qr(block.T).Q.T for block in rows.double().split(width)]
        rows = torch.cat(blocks).float()
    return rows / rows.norm(dim=1, keepdim=True)
