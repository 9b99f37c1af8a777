"""What benchmarks read: rows of a site and their latents, encoded once, of which some are asked for again and again.

Shape letters: N rows, D width, F latents, K latents chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary, Latents
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.core.words import counted
from monosema.evaluation.activations import ROWS_PER_STEP
from monosema.evaluation.measure import evaluation_mode, require_finite_weights
from monosema.kernels import to_columns
from monosema.kernels.latents import stack_tokens
from monosema.metrics import require_finite


@dataclass(frozen=True)
class EncodedRows:
    """Rows of a site and their latents under the inference rule, on the CPU; or means of both over a text's tokens.

    ``encode_rows`` makes them of activations, ``text_rows`` of texts and ``word_rows`` of words.
    """

    x_ND: Tensor
    """[N, D]: the activations."""
    latents: Latents
    """Of all N."""
    groups_N: Tensor
    """[N] int64: rows of one group belong together (copies of a text) and are never parted by a split."""
    notes: tuple[str, ...] = ()
    """What a report of these rows must say of the model they were read from: ``model_notes``."""

    def __len__(self) -> int:
        return len(self.x_ND)

    def sums(self, weights_N: Tensor) -> Tensor:
        """``Σ_n weights_n f_n`` [F] float64."""
        weighted = self.latents.values.double() * weights_N.double()[self.latents.rows()]
        return weighted.new_zeros(self.latents.d_sae).index_add_(0, self.latents.indices.long(), weighted)

    def mean_difference(self, y_N: Tensor, among: Tensor, weights: Tensor | None = None) -> Tensor:
        """``E[f | y] - E[f | not y]`` [F] float64 over the rows ``among``; each label must have some.

        ``weights``, of those rows, make weighted means of these.
        """
        s = torch.zeros(len(y_N), dtype=torch.float64)
        s[among] = 1.0 if weights is None else weights.double()
        y = y_N.double()
        return self.sums(s * (y / (s * y).sum() - (1 - y) / (s * (1 - y)).sum()))

    def columns(self, latents_K: Tensor) -> Tensor:
        """The activations ``[N, K]`` float64 of some latents."""
        columns = to_columns(self.latents)
        values = self.latents.values.double()[columns.order]
        out = torch.zeros(len(self), len(latents_K), dtype=torch.float64)
        for place, latent in enumerate(latents_K.tolist()):
            own = slice(int(columns.offsets[latent]), int(columns.offsets[latent + 1]))
            out[columns.tokens[own].long(), place] = values[own]
        return out

    def dense(self, rows_K: Tensor) -> Tensor:
        """All latents ``[K, F]`` float64 of some rows, each of them named once."""
        place = torch.full((len(self),), -1)
        place[rows_K] = torch.arange(len(rows_K))
        to = place[self.latents.rows()]
        kept = to >= 0
        out = torch.zeros(len(rows_K), self.latents.d_sae, dtype=torch.float64)
        out[to[kept], self.latents.indices[kept].long()] = self.latents.values[kept].double()
        return out


def require_plain_sae(coder: Dictionary, benchmark: str) -> Dictionary:
    """``coder``, which must reconstruct the site it reads as ``Σ_i f_i W_dec[i] + b_dec``; ``ConfigError`` if not.

    Raises ``DataError`` where a weight is not finite: a latent whose encoder is NaN would merely be silent.
    """
    if coder.is_layered or not coder.reconstructs or coder.has_skip:
        raise ConfigError(f"{benchmark} needs an SAE: its decoder rows must lie in the site that it reads")
    if coder.token_scaling != "none":
        raise ConfigError(
            f"{benchmark} needs decoder rows in the units of the site, and token_scaling="
            f"{coder.token_scaling!r} gives each token units of its own; train with a linear input_scaling"
        )
    require_finite_weights(coder)
    return coder


def decoder_rows(sae: Dictionary) -> Tensor:
    """The decoder rows of all latents [F, D], float64 on the CPU."""
    return sae.decoder_rows(range(sae.d_sae)).detach().double().cpu()


def encode_rows(coder: Dictionary, rows: Tensor | EncodedRows) -> EncodedRows:
    """Encode activations ``[N, d_in]``, each a group of its own; rows that are encoded already are checked only.

    Raises ``ShapeError`` for another shape, ``DataError`` for no rows, or a row or a latent that is not finite.
    """
    x_ND = rows.x_ND if isinstance(rows, EncodedRows) else rows
    if x_ND.dim() != 2 or x_ND.shape[1] != coder.d_in:
        raise ShapeError(f"activations must be [rows, {coder.d_in}] (d_in), got {list(x_ND.shape)}")
    if not len(x_ND):
        raise DataError("there are no activations; give at least some rows of each class")
    if isinstance(rows, EncodedRows):
        if rows.latents.d_sae != coder.d_sae:
            raise ShapeError(
                f"the rows have {counted(rows.latents.d_sae, 'latent')}, the coder {coder.d_sae}; encode with it"
            )
        return rows
    require_finite("activations", x_ND)
    x_ND = x_ND.detach()
    with evaluation_mode(coder):
        parts = [encode_on_cpu(coder, part) for part in x_ND.split(ROWS_PER_STEP)]
    return EncodedRows(on_cpu(x_ND), stack_tokens(parts), torch.arange(len(x_ND)))


def encode_on_cpu(coder: Dictionary, x_ND: Tensor) -> Latents:
    """The latents of some rows, brought to the CPU; ``DataError`` where they are not finite."""
    latents = coder.encode_sparse(x_ND.to(device=coder.device, dtype=coder.dtype))
    require_finite("the coder's latents", latents.values)
    return Latents(
        latents.crow.cpu(), latents.indices.cpu(), on_cpu(latents.values), latents.d_sae, latents.leading_shape
    )


def on_cpu(values: Tensor) -> Tensor:
    """``values`` on the CPU, in float32 where they had less."""
    return values.cpu() if values.dtype in (torch.float32, torch.float64) else values.float().cpu()
