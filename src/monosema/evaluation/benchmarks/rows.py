"""Rows of a site, checked and encoded once, for benchmarks that ask again and again for some of their latents.

Shape letters: N rows, D width, F latents, K latents chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary, Latents, SparseCoder
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.core.seeds import random_stream
from monosema.evaluation.measure import ROWS_PER_STEP, evaluation_mode
from monosema.kernels import to_columns
from monosema.kernels.latents import stack_tokens
from monosema.metrics import require_finite


def require_plain_sae(coder: Dictionary, benchmark: str) -> SparseCoder:
    """``coder``, which must reconstruct the site it reads as ``Σ_i f_i W_dec[i] + b_dec``; ``ConfigError`` if not.

    Raises ``DataError`` where a weight is not finite: a latent whose encoder is NaN would merely be silent.
    """
    if not isinstance(coder, SparseCoder) or not coder.config.reconstructs or coder.W_skip is not None:
        raise ConfigError(f"{benchmark} needs an SAE: its decoder rows must lie in the site that it reads")
    if coder.config.token_scaling != "none":
        raise ConfigError(
            f"{benchmark} needs decoder rows in the units of the site, and token_scaling="
            f"{coder.config.token_scaling!r} gives each token units of its own; train with a linear input_scaling"
        )
    for name, parameter in coder.named_parameters():
        require_finite(f"the coder's {name}", parameter)
    return coder


@dataclass(frozen=True)
class EncodedRows:
    """Rows ``x [N, D]`` in the coder's dtype and on its device, and their latents under the inference rule."""

    x_ND: Tensor
    """[N, D]: the rows."""
    latents: Latents
    """Theirs, of all N."""

    @classmethod
    def of(cls, coder: SparseCoder, activations: Tensor) -> EncodedRows:
        """Encode ``activations [N, d_in]``.

        Raises ``ShapeError`` for another shape, ``DataError`` for no rows, or a row or a latent that is not finite.
        """
        if activations.dim() != 2 or activations.shape[1] != coder.d_in:
            raise ShapeError(f"activations must be [rows, {coder.d_in}] (d_in), got {list(activations.shape)}")
        if not len(activations):
            raise DataError("there are no activations; give at least some rows of each class")
        require_finite("activations", activations)
        x = activations.detach().to(device=coder.device, dtype=coder.dtype)
        with evaluation_mode(coder):
            latents = stack_tokens([coder.encode_sparse(part) for part in x.split(ROWS_PER_STEP)])
        require_finite("the coder's latents", latents.values)
        return cls(x, latents)

    def sums(self, weights_N: Tensor) -> Tensor:
        """``Σ_n weights_n f_n`` [F] float64."""
        weighted = self.latents.values.double() * weights_N.to(self.x_ND.device).double()[self.latents.rows()]
        return weighted.new_zeros(self.latents.d_sae).index_add_(0, self.latents.indices.long(), weighted)

    def mean_difference(self, y_N: Tensor, among: Tensor, weights: Tensor | None = None) -> Tensor:
        """``E[f | y] - E[f | not y]`` [F] float64 over the rows ``among``; each label must have some.

        ``weights``, of those rows, make weighted means of these.
        """
        s = torch.zeros(len(y_N), dtype=torch.float64)
        s[among] = 1.0 if weights is None else weights.cpu().double()
        y = y_N.cpu().double()
        return self.sums(s * (y / (s * y).sum() - (1 - y) / (s * (1 - y)).sum()))

    def columns(self, latents_K: Tensor) -> Tensor:
        """The activations ``[N, K]`` float64 of some latents."""
        columns = to_columns(self.latents)
        values = self.latents.values.double()[columns.order]
        out = torch.zeros(len(self.x_ND), len(latents_K), dtype=torch.float64, device=values.device)
        for place, latent in enumerate(latents_K.tolist()):
            own = slice(int(columns.offsets[latent]), int(columns.offsets[latent + 1]))
            out[columns.tokens[own].long(), place] = values[own]
        return out

    def dense(self, rows_K: Tensor) -> Tensor:
        """All latents ``[K, F]`` float64 of some rows."""
        place = torch.full((len(self.x_ND),), -1, device=self.x_ND.device)
        place[rows_K.to(place.device)] = torch.arange(len(rows_K), device=place.device)
        to = place[self.latents.rows()]
        kept = to >= 0
        out = torch.zeros(len(rows_K), self.latents.d_sae, dtype=torch.float64, device=place.device)
        out[to[kept], self.latents.indices[kept].long()] = self.latents.values[kept].double()
        return out


def split_rows(groups_N: Tensor, test_fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Ascending indices of training and test rows, drawn within each group (an integer each); both get some of each.

    Raises ``ConfigError`` for a fraction outside (0, 1) and ``DataError`` for a group of fewer than two rows.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    generator = random_stream(seed, "benchmark", purpose, "split")
    test = torch.zeros(len(groups_N), dtype=torch.bool)
    for group in groups_N.unique().tolist():
        own = (groups_N == group).nonzero().squeeze(1)
        if len(own) < 2:
            raise DataError("a class has a single row; it needs at least one to fit on and one to test on")
        n_test = min(len(own) - 1, max(1, round(test_fraction * len(own))))
        test[own[torch.randperm(len(own), generator=generator)[:n_test]]] = True
    return (~test).nonzero().squeeze(1), test.nonzero().squeeze(1)
