"""The sparse arithmetic everything else stands on: selection, decoding, gradients.

Imports ``core`` only. Each operation is a contract with a plain dense twin in ``reference`` and a fast path;
start with ``latents`` (the one sparse layout), then ``bags``.
"""

from monosema.kernels.bags import Columns, decode, latent_sums, sampled_products, to_columns, weight_gradient
from monosema.kernels.latents import (
    Latents,
    latents_from_dense,
    latents_from_mask,
    latents_from_pairs,
    stack_tokens,
)
from monosema.kernels.levels import Levels, budget_levels, decode_levels, level_gradient, prefix_levels
from monosema.kernels.select import (
    Scores,
    entries_above,
    select_above,
    select_batch_top_k,
    select_batch_top_k_of_parts,
    select_row_top_k,
)

__all__ = [
    "Columns",
    "Latents",
    "Levels",
    "Scores",
    "budget_levels",
    "decode",
    "decode_levels",
    "entries_above",
    "latent_sums",
    "latents_from_dense",
    "latents_from_mask",
    "latents_from_pairs",
    "level_gradient",
    "prefix_levels",
    "sampled_products",
    "select_above",
    "select_batch_top_k",
    "select_batch_top_k_of_parts",
    "select_row_top_k",
    "stack_tokens",
    "to_columns",
    "weight_gradient",
]
