"""The two plain ways to make a coder."""

from __future__ import annotations

from monosema.coders.coder import SparseCoder
from monosema.coders.config import ActivationConfig, BatchTopK, BDecMode, CoderConfig
from monosema.core.errors import ConfigError


def SAE(
    d_in: int,
    d_sae: int | None = None,
    *,
    expansion_factor: float | None = None,
    activation: ActivationConfig | None = None,
    b_dec: BDecMode = "input_and_output",
    dtype: str = "float32",
    seed: int = 0,
) -> SparseCoder:
    """A sparse autoencoder: reads a site and reconstructs it.

    Give ``d_sae`` or ``expansion_factor`` (``d_sae = round(expansion_factor · d_in)``), not both. The activation
    defaults to ``BatchTopK(k=32)``. Weights come from a random stream keyed by ``seed``.
    """
    width = _width(d_in, d_sae, expansion_factor)
    config = CoderConfig(
        d_in=d_in,
        d_sae=width,
        d_out=d_in,
        activation=activation if activation is not None else BatchTopK(k=max(1, min(32, width))),
        b_dec=b_dec,
        dtype=dtype,
        seed=seed,
    )
    return SparseCoder(config)


def Transcoder(
    d_in: int,
    d_out: int,
    d_sae: int | None = None,
    *,
    expansion_factor: float | None = None,
    activation: ActivationConfig | None = None,
    skip: bool = False,
    dtype: str = "float32",
    seed: int = 0,
) -> SparseCoder:
    """A transcoder: reads one site (an MLP's input) and predicts another (its output).

    ``skip=True`` adds a linear map from input to output (Paulo et al. 2025, arXiv 2501.18823).
    """
    width = _width(d_in, d_sae, expansion_factor)
    config = CoderConfig(
        d_in=d_in,
        d_sae=width,
        d_out=d_out,
        activation=activation if activation is not None else BatchTopK(k=max(1, min(32, width))),
        b_dec="output",
        skip=skip,
        hook_name="input",
        hook_name_out="target",
        dtype=dtype,
        seed=seed,
    )
    return SparseCoder(config)


def _width(d_in: int, d_sae: int | None, expansion_factor: float | None) -> int:
    if d_sae is not None and expansion_factor is not None:
        raise ConfigError("give d_sae or expansion_factor, not both")
    if d_sae is not None:
        return d_sae
    if expansion_factor is None:
        raise ConfigError("give d_sae (number of latents) or expansion_factor (multiple of d_in)")
    if expansion_factor <= 0:
        raise ConfigError(f"expansion_factor must be positive, got {expansion_factor}")
    return round(expansion_factor * d_in)
