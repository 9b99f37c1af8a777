"""What is known of each latent: how often and how strongly it fires, and what its weights say."""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.files import write_atomically
from monosema.metrics import LatentSums, encoder_decoder_cosine, encoder_norms, max_cosine_to_others


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentTable:
    """One row for each latent, ``[d_sae]`` float64; those of a cross-layer transcoder layer after layer.

    NaN where a value is not defined: of activity for latents that never fired, of cosines as ``metrics.weights`` says.
    """

    density: Tensor
    """Fraction of tokens on which it fired."""
    mean_activation: Tensor
    """Mean value where it fired."""
    max_activation: Tensor
    """Largest value in size."""
    consistent_activation: Tensor
    """Firings for each context with one; 0/0 where contexts are not known."""
    encoder_norm: Tensor
    """Length of its encoder column."""
    encoder_bias: Tensor
    """Its encoder bias; NaN for coders without one."""
    decoder_norm: Tensor
    """Length of its decoder row, over all sites written."""
    encoder_decoder_cosine: Tensor
    """Cosine of encoder column and decoder row, for dictionaries that write what they read; else NaN."""
    max_decoder_cosine: Tensor
    """Largest cosine of its decoder row with another's of its layer."""
    max_encoder_cosine: Tensor
    """Largest cosine of its encoder column with another's of its layer."""

    def columns(self) -> dict[str, list[float | None]]:
        """By name; NaN becomes None."""
        values = {each.name: getattr(self, each.name).tolist() for each in fields(self)}
        return {name: [None if math.isnan(value) else value for value in own] for name, own in values.items()}

    def mean(self, name: str) -> float:
        """The mean of a column over latents where it is defined; NaN where it is nowhere."""
        return float(getattr(self, name).nanmean())

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """A line for each latent, its index first; what is not defined is empty."""
        columns: dict[str, list[Any]] = {"index": list(range(len(self.density))), **self.columns()}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_atomically(path, text.getvalue().encode())


def latent_table(coder: Dictionary, activity: LatentSums, n_tokens: int) -> LatentTable:
    """The table of ``coder`` whose latents were active as in ``activity`` on ``n_tokens`` tokens."""
    is_sae = coder.reconstructs and not coder.is_layered
    weights = [_weights(part.coder, is_sae=is_sae) for part in coder.parts]
    return LatentTable(
        density=activity.firings.to(torch.float64) / n_tokens,
        mean_activation=activity.mean_value,
        max_activation=activity.largest,
        consistent_activation=activity.consistent_activation,
        **{name: torch.cat([each[name] for each in weights]) for name in weights[0]},
    )


@torch.no_grad()
def _weights(coder: Dictionary, *, is_sae: bool) -> dict[str, Tensor]:
    """Of a dictionary of one part; NaN where its latents have no encoder or decoder rows."""
    nowhere, latents = torch.full((coder.d_sae,), math.nan, dtype=torch.float64), range(coder.d_sae)
    encoder = coder.encoder_rows(latents) if coder.has_encoder_rows else None
    decoder = coder.decoder_rows(latents) if coder.has_decoder_rows else None
    bias = coder.encoder_biases(latents) if coder.has_encoder_rows else None
    both = None if encoder is None or decoder is None or not is_sae else (encoder.T, decoder)
    return {
        "encoder_norm": nowhere if encoder is None else encoder_norms(encoder.T),
        "encoder_bias": nowhere if bias is None else bias.detach().double().cpu(),
        "decoder_norm": nowhere if decoder is None else encoder_norms(decoder.T),
        "encoder_decoder_cosine": nowhere if both is None else encoder_decoder_cosine(*both),
        "max_decoder_cosine": nowhere if decoder is None else max_cosine_to_others(decoder),
        "max_encoder_cosine": nowhere if encoder is None else max_cosine_to_others(encoder),
    }
