"""Sparse decoding and its two gradients: everything in O(E·D), nothing in O(B·F·D).

A token's reconstruction is a weighted bag of decoder rows. A weight gradient is the same operation seen from
the other side: a latent's gradient row is a weighted bag of token rows, once the entries are sorted by latent
(``to_columns``, one stable counting sort serves both weight matrices).

Where many entries are active a dense product is cheaper; the choice depends on the entries alone, never on
timing, and both give the same result. On CUDA the sparse operations are Triton programs (``triton_bags``) where triton
is there, torch's own elsewhere. Shape letters: B tokens, F latents, D width, E active entries, R bags.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from monosema.kernels import reference
from monosema.kernels.dispatch import runs_triton
from monosema.kernels.latents import Latents
from monosema.kernels.precision import autocast_dtype, lowered

DENSE_DENSITY = 0.08
"""Above this share of active entries the dense product is used (measured: ``benchmarks/density.py``)."""


def is_dense(latents: Latents) -> bool:
    """Whether the dense product is the cheaper one for these entries."""
    return latents.nnz > DENSE_DENSITY * latents.n_tokens * latents.d_sae


@dataclass(frozen=True)
class Columns:
    """Entries sorted by latent, then token: the transposed view of a ``Latents``."""

    latents: Latents
    order: Tensor
    """[E] int64: position in the row order of each entry of the column order."""
    tokens: Tensor
    """[E] int32: token of each entry."""
    offsets: Tensor
    """[F + 1] int32: entries of latent i are ``offsets[i]:offsets[i + 1]``."""
    counts: Tensor
    """[F] int64: number of tokens on which each latent is active."""


def to_columns(latents: Latents) -> Columns:
    """The entries of ``latents`` in column order."""
    counts = latents.counts()
    offsets = torch.zeros(latents.d_sae + 1, dtype=torch.int32, device=counts.device)
    offsets[1:] = counts.cumsum(0)
    order = _stable_order(latents.indices, latents.d_sae)
    return Columns(latents, order, latents.rows().index_select(0, order).int(), offsets, counts)


def decode(latents: Latents, weight_FD: Tensor) -> Tensor:
    """``x̂[t] = Σ_e f_e · weight[i_e]`` over the entries of token t: ``[B, D]``."""
    if (dtype := autocast_dtype(weight_FD)) is not None:
        (values, of_values), (weight, of_weight) = lowered(latents.values, dtype), lowered(weight_FD, dtype)
        return _decode(latents.with_values(values), weight).float() * (of_values * of_weight)
    return _decode(latents, weight_FD).to(weight_FD.dtype)


def sampled_products(latents: Latents, left_BD: Tensor, weight_FD: Tensor) -> Tensor:
    """``⟨left[t_e], weight[i_e]⟩`` for each entry: ``[E]``. The gradient with respect to the activations."""
    if (dtype := autocast_dtype(weight_FD)) is not None:
        (left, of_left), (weight, of_weight) = lowered(left_BD, dtype), lowered(weight_FD, dtype)
        return _sampled_products(latents, left, weight).float() * (of_left * of_weight)
    return _sampled_products(latents, left_BD, weight_FD).to(weight_FD.dtype)


def weight_gradient(columns: Columns, values: Tensor, table_BD: Tensor) -> Tensor:
    """``G[i] = Σ_e values_e · table[t_e]`` over the entries of latent i: ``[F, D]``.

    ``values [E]`` are in row order. With activations and the output gradient this is the decoder's gradient;
    with pre-activation gradients and the input, the encoder's.
    """
    if (dtype := autocast_dtype(table_BD)) is not None:
        (low, of_low), (table, of_table) = lowered(values, dtype), lowered(table_BD, dtype)
        return _weight_gradient(columns, low, table).float() * (of_low * of_table)
    return _weight_gradient(columns, values, table_BD).to(table_BD.dtype)


def latent_sums(columns: Columns, values: Tensor) -> Tensor:
    """``Σ_e values_e`` over the entries of each latent: ``[F]``, of ``values [E]`` in row order."""
    if values.device.type == "cpu":
        return values.new_zeros(columns.latents.d_sae).index_add_(0, columns.latents.indices, values)
    ones = values.new_ones(columns.latents.n_tokens, 1)  # elsewhere index_add_ adds in any order
    return (
        _bag(columns.tokens, values.index_select(0, columns.order), columns.offsets, ones).squeeze(1).to(values.dtype)
    )


def _decode(latents: Latents, weight_FD: Tensor) -> Tensor:
    if is_dense(latents):
        return reference.decode_dense(latents, weight_FD)
    return _bag(latents.indices, latents.values, latents.crow, weight_FD)


def _weight_gradient(columns: Columns, values: Tensor, table_BD: Tensor) -> Tensor:
    if is_dense(columns.latents):
        return reference.weight_gradient_dense(columns.latents.with_values(values), table_BD)
    return _bag(columns.tokens, values.index_select(0, columns.order), columns.offsets, table_BD)


def _sampled_products(latents: Latents, left_BD: Tensor, weight_FD: Tensor) -> Tensor:
    if is_dense(latents):
        return reference.sampled_products_dense(latents, left_BD, weight_FD)
    if runs_triton(weight_FD):
        products: Tensor = _programs().sampled_products(latents, left_BD, weight_FD)
        return products
    if weight_FD.device.type == "cpu" and weight_FD.dtype in (torch.float32, torch.float64):
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            left_BD.contiguous(), weight_FD, latents.indices, latents.crow[:-1], latents.rows().int(), 0
        )
    rows = latents.rows()
    return (left_BD[rows] * weight_FD[latents.indices]).sum(1)


def _bag(indices: Tensor, values: Tensor, offsets: Tensor, table_ND: Tensor) -> Tensor:
    """``out[r] = Σ_e values_e · table[indices_e]`` over entries ``offsets[r]:offsets[r + 1]``: ``[R, D]``."""
    if runs_triton(table_ND):
        sums: Tensor = _programs().bag(indices, values, offsets, table_ND)
        return sums
    weights = values.to(table_ND.dtype)
    return embedding_bag(indices, table_ND, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _programs() -> ModuleType:
    return importlib.import_module("monosema.kernels.triton_bags")


def _stable_order(indices: Tensor, d_sae: int) -> Tensor:
    if indices.device.type == "cpu" and d_sae <= 65536:  # NumPy sorts 16-bit keys by counting
        return torch.from_numpy(np.argsort(indices.numpy().astype(np.uint16), kind="stable"))
    return indices.argsort(stable=True)
