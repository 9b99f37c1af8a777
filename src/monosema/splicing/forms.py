"""The forms in which latents are encoded, edited and decoded while a dictionary is spliced in.

A splice keeps to one: latents decoded in two ways differ by rounding, which would be a difference where nothing was
edited. Shape letters: n rows, F latents, I input width.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, final, runtime_checkable

import torch
from torch import Tensor

from monosema.coders import Dictionary, Latents

Z = TypeVar("Z", Tensor, Latents)
"""Latents in one form; the coder's ``decode`` takes it."""


@runtime_checkable
class LatentForm(Protocol[Z]):
    """One form of latents."""

    def encode(self, coder: Dictionary, x: Tensor) -> Z:
        """The latents of rows ``x [n, I]`` under the inference rule."""

    def touched(self, before: Z, after: Z) -> Tensor:
        """``[n]`` bool: rows whose latents differ."""


@final
class DenseForm:
    """Rows ``[n, F]``, with gradients: for edits of latents and for their gradients."""

    def encode(self, coder: Dictionary, x: Tensor) -> Tensor:
        """``[n, F]``."""
        return coder.encode(x)

    def touched(self, before: Tensor, after: Tensor) -> Tensor:
        """Rows in which any latent differs."""
        return (before != after).any(dim=1)


@final
class SparseForm:
    """``Latents``, without gradients: for runs in which the dictionary acts as it is."""

    def encode(self, coder: Dictionary, x: Tensor) -> Latents:
        """Never built densely."""
        return coder.encode_sparse(x)

    def touched(self, before: Latents, after: Latents) -> Tensor:
        """Rows in which a value differs; all rows where the entries are others."""
        touched = torch.zeros(before.n_tokens, dtype=torch.bool, device=before.values.device)
        if not (torch.equal(before.crow, after.crow) and torch.equal(before.indices, after.indices)):
            return ~touched
        touched[before.rows()[before.values != after.values]] = True
        return touched


DENSE, SPARSE = DenseForm(), SparseForm()
