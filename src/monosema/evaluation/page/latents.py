"""The tables of all latents as arrays for the page's script: float32 with 16 significant bits, firings as counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monosema.evaluation.latent_table import LatentTable
from monosema.evaluation.report import Report

COLUMNS = (
    ("density", "Density", "share of the tokens on which it fires"),
    ("mean_activation", "Mean", "mean activation where it fires"),
    ("max_activation", "Max", "largest activation in size"),
    ("consistent_activation", "Per context", "firings for each context with one"),
    ("encoder_norm", "Encoder norm", "length of its encoder column"),
    ("encoder_bias", "Encoder bias", "its encoder bias"),
    ("decoder_norm", "Decoder norm", "length of its decoder row, over all sites written"),
    ("encoder_decoder_cosine", "Enc·dec cosine", "cosine of its encoder column and decoder row"),
    ("max_decoder_cosine", "Max dec cosine", "largest cosine of its decoder row with another's"),
    ("max_encoder_cosine", "Max enc cosine", "largest cosine of its encoder column with another's"),
)
"""Name, heading and meaning; where a value is NaN, it is not defined."""
_DROPPED_BITS = 8
"""Of a float32's 24; what is shown has three digits, and zeros take no room once deflated."""


def latents_header(names: Sequence[str], reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """For each dictionary what the script must know besides its arrays; without latents where there is no table."""
    return [
        {"name": name, "n_tokens": report.n_tokens, "n_latents": len(report.latents.density)}
        if report.latents is not None
        else {"name": name, "n_tokens": report.n_tokens, "n_latents": None}
        for name, report in zip(names, reports.values(), strict=True)
    ]


def latents_arrays(reports: Mapping[str, Report]) -> dict[str, np.ndarray]:
    """By ``NUMBER/COLUMN``, ``[d_sae]`` each; the density is in tokens."""
    return {
        f"{number}/{name}": _array(report.latents, name, report.n_tokens)
        for number, report in enumerate(reports.values())
        if report.latents is not None
        for name, _, _ in COLUMNS
    }


def _array(table: LatentTable, name: str, n_tokens: int) -> np.ndarray:
    values: np.ndarray = getattr(table, name).numpy()
    if name == "density":
        return np.rint(values * n_tokens).astype(np.int64)
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS << _DROPPED_BITS
    return np.where(np.isfinite(single), rounded, bits).astype(np.uint32).view(np.float32)
