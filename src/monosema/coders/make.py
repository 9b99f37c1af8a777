"""The plain ways to make a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from monosema.coders.activations.registry import activation_named, usual_k
from monosema.coders.coder import SparseCoder
from monosema.coders.config import (
    ActivationConfig,
    BatchTopK,
    BDecMode,
    CoderConfig,
    DecoderInit,
    EncoderInit,
    StackConfig,
    TokenScaling,
)
from monosema.coders.sites import join_names
from monosema.coders.stack import CrossLayerTranscoder
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options
from monosema.core.peers_attributes import constructor


@constructor
@explains_options
def SAE(
    d_in: int,
    d_sae: int | None = None,
    *,
    expansion_factor: float | None = None,
    activation: ActivationConfig | str | None = None,
    token_scaling: TokenScaling = "none",
    b_dec: BDecMode = "input_and_output",
    decoder_init: DecoderInit = "random",
    decoder_init_norm: float | None = None,
    encoder_init: EncoderInit = "auto",
    hook_name: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> SparseCoder:
    """A sparse autoencoder: reads a site and reconstructs it.

    Give ``d_sae`` or ``expansion_factor`` (``d_sae = round(expansion_factor · d_in)``), not both. The activation
    defaults to ``BatchTopK(32)``; its name does as well (``"topk"``, ``"TopK(16)"``), with k = 32 by default. Weights
    come from a random stream keyed by ``seed``. ``hook_name`` says which of a stream's sites it reads, where several
    coders share one stream.
    """
    width = _width(d_in, d_sae, expansion_factor)
    config = CoderConfig(
        d_in=d_in,
        d_sae=width,
        d_out=d_in,
        activation=_activation(activation, width),
        token_scaling=token_scaling,
        b_dec=b_dec,
        decoder_init=decoder_init,
        decoder_init_norm=decoder_init_norm,
        encoder_init=encoder_init,
        hook_name=hook_name,
        hook_name_out=hook_name,
        dtype=dtype,
        seed=seed,
    )
    return SparseCoder(config)


@constructor
@explains_options
def Transcoder(
    d_in: int,
    d_out: int,
    d_sae: int | None = None,
    *,
    expansion_factor: float | None = None,
    activation: ActivationConfig | str | None = None,
    token_scaling: TokenScaling = "none",
    skip: bool = False,
    b_dec: BDecMode = "output",
    decoder_init: DecoderInit = "random",
    decoder_init_norm: float | None = None,
    encoder_init: EncoderInit = "auto",
    hook_name: str = "input",
    hook_name_out: str = "target",
    dtype: str = "float32",
    seed: int = 0,
) -> SparseCoder:
    """A transcoder: reads one site (an MLP's input) and predicts another (its output).

    ``skip=True`` adds a linear map from input to output (Paulo et al. 2025, arXiv 2501.18823); ``b_dec="separate"`` a
    bias subtracted from the input (Dunefsky et al. 2024, arXiv 2406.11944). The encoder starts independent of the
    decoder, unless ``encoder_init="transpose"``.
    """
    width = _width(d_in, d_sae, expansion_factor)
    config = CoderConfig(
        d_in=d_in,
        d_sae=width,
        d_out=d_out,
        activation=_activation(activation, width),
        token_scaling=token_scaling,
        b_dec=b_dec,
        skip=skip,
        decoder_init=decoder_init,
        decoder_init_norm=decoder_init_norm,
        encoder_init=encoder_init,
        hook_name=hook_name,
        hook_name_out=hook_name_out,
        dtype=dtype,
        seed=seed,
    )
    return SparseCoder(config)


@constructor
@explains_options
def Crosscoder(
    widths: Sequence[int],
    d_sae: int | None = None,
    *,
    expansion_factor: float | None = None,
    activation: ActivationConfig | str | None = None,
    token_scaling: TokenScaling = "none",
    causal: bool = False,
    decoder_init: DecoderInit = "random",
    decoder_init_norm: float | None = None,
    encoder_init: EncoderInit = "auto",
    hook_names: Sequence[str] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> SparseCoder:
    """A crosscoder: one set of latents reads several sites (of one model or of two) and reconstructs them all.

    ``f = activation(Σ_m x^m W_enc^m + b_enc)``, ``x̂^m = f W_dec^m + b_dec^m`` (Lindsey et al. 2024). ``widths`` are the
    sites' widths; ``expansion_factor`` is relative to the first. ``causal=True`` is the weakly causal form.
    """
    d_in = sum(widths)
    if encoder_init == "auto":
        encoder_init = "independent" if decoder_init == "zeros" else "transpose"
    width = _width(widths[0] if len(widths) else 1, d_sae, expansion_factor)
    name = None if hook_names is None else join_names(hook_names)
    config = CoderConfig(
        d_in=d_in,
        d_sae=width,
        d_out=d_in,
        activation=_activation(activation, width),
        token_scaling=token_scaling,
        b_dec="output",
        read_widths=tuple(widths),
        write_widths=tuple(widths),
        causal=causal,
        decoder_init=decoder_init,
        decoder_init_norm=decoder_init_norm,
        encoder_init=encoder_init,
        hook_name=name,
        hook_name_out=name,
        dtype=dtype,
        seed=seed,
    )
    return SparseCoder(config)


@constructor
@explains_options
def CLT(
    read_widths: Sequence[int],
    write_widths: Sequence[int],
    d_sae: int | None = None,
    *,
    expansion_factor: float | None = None,
    activation: ActivationConfig | str | None = None,
    token_scaling: TokenScaling = "none",
    tied: Literal["none", "per_source", "per_target"] = "none",
    dtype: str = "float32",
    seed: int = 0,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder of ``d_sae`` latents a layer, over the inputs and outputs of all MLPs."""
    width = _width(read_widths[0] if len(read_widths) else 1, d_sae, expansion_factor)
    config = StackConfig(
        read_widths=tuple(read_widths),
        write_widths=tuple(write_widths),
        d_sae=width,
        activation=_activation(activation, width),
        token_scaling=token_scaling,
        tied=tied,
        hook_name="input",
        hook_name_out="target",
        dtype=dtype,
        seed=seed,
    )
    return CrossLayerTranscoder(config)


def _activation(activation: ActivationConfig | str | None, width: int) -> ActivationConfig:
    if isinstance(activation, str):
        return activation_named(activation, most=width)
    return activation if activation is not None else BatchTopK(k=usual_k(width))


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
