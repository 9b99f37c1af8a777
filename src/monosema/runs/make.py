"""From a run's options and its sites to a fresh dictionary."""

from __future__ import annotations

from typing import Any

from monosema.coders import CLT, SAE, Crosscoder, TrainableDictionary, Transcoder
from monosema.core.errors import ConfigError
from monosema.data.sites import RowLayout
from monosema.runs.config import CoderOptions

DEFAULT_EXPANSION = 16

_VARIANTS = {
    "SAE": "an SAE (one site, read and written)",
    "Crosscoder": "a crosscoder (several sites, read and written)",
    "Transcoder": "a transcoder (stream.targets names the site written)",
    "CLT": "a cross-layer transcoder (several sites read, as many in stream.targets)",
}


def make_coder(options: CoderOptions, layout: RowLayout) -> TrainableDictionary:
    """The coder of ``options`` for the sites of ``layout``.

    Raises ``ConfigError`` for an option that the variant, which the sites decide, does not have.
    """
    reads, writes = ([width for _, width in sites] for sites in (layout.reads, layout.writes))
    variant = variant_for(options, layout)
    _refuse_foreign(options, variant, layout)
    d_sae = options.d_sae
    if d_sae is None and options.expansion_factor is None:
        d_sae = DEFAULT_EXPANSION * reads[0]
    plain: dict[str, Any] = {
        "expansion_factor": options.expansion_factor,
        "activation": options.activation,
        "token_scaling": options.token_scaling,
        "dtype": options.dtype,
        "seed": options.seed,
    }
    start: dict[str, Any] = {
        "decoder_init": options.decoder_init,
        "decoder_init_norm": options.decoder_init_norm,
        "encoder_init": options.encoder_init,
    }
    if variant == "CLT":
        return CLT(reads, writes, d_sae, tied=options.tied, **plain)
    if variant == "Crosscoder":
        return Crosscoder(reads, d_sae, causal=options.causal, **start, **plain)
    if variant == "SAE":
        return SAE(reads[0], d_sae, b_dec=options.b_dec or "input_and_output", **start, **plain)
    if variant != "Transcoder":
        raise AssertionError(f"there is no variant {variant!r} to make")
    own: dict[str, Any] = {"skip": options.skip, "b_dec": options.b_dec or "output"}
    return Transcoder(sum(reads), sum(writes), d_sae, **own, **start, **plain)


def variant_for(options: CoderOptions, layout: RowLayout) -> str:
    """Which maker of dictionaries the sites and ``options.variant`` come to."""
    if options.variant == "cross_layer_transcoder":
        return "CLT"
    if layout.is_autoencoder:
        return "Crosscoder" if len(layout.reads) > 1 else "SAE"
    return "CLT" if len(layout.reads) > 1 else "Transcoder"


def _refuse_foreign(options: CoderOptions, variant: str, layout: RowLayout) -> None:
    """Refuse what would be passed over in silence."""
    if layout.is_autoencoder and (options.skip or variant == "CLT"):
        raise ConfigError("coder.skip and cross-layer transcoders write other sites: name them with stream.targets")
    needs = {
        "skip": ("Transcoder", "a skip connection belongs to a transcoder of one site read"),
        "causal": (
            "Crosscoder",
            "a weakly causal mask needs a crosscoder: two or more sites in stream.hook_names, in "
            "the order of the layers, and no stream.targets",
        ),
        "tied": (
            "CLT",
            "tied decoders belong to a cross-layer transcoder: several sites in stream.hook_names and as "
            "many in stream.targets",
        ),
    }
    for name, (owner, need) in needs.items():
        value = getattr(options, name)
        if value not in (False, "none") and variant != owner:
            raise ConfigError(f"coder.{name}={value}: {need}; this run's sites make {_VARIANTS[variant]}")
    start = (options.decoder_init, options.decoder_init_norm, options.encoder_init)
    if variant == "CLT" and start != ("random", None, "auto"):
        raise ConfigError(
            "a cross-layer transcoder's encoders and decoders start at random, independent of each other; leave "
            "out coder.decoder_init, coder.decoder_init_norm and coder.encoder_init"
        )
    if variant == "CLT" and options.b_dec is not None:
        raise ConfigError("a cross-layer transcoder has one bias for each site written; leave out coder.b_dec")
    if variant == "Crosscoder" and options.b_dec not in (None, "output"):
        raise ConfigError("a crosscoder's b_dec belongs to its output; use coder.b_dec=output or leave it out")
    if variant == "Transcoder" and options.b_dec == "input_and_output":
        raise ConfigError("a transcoder's b_dec belongs to its output; use coder.b_dec=output or separate")
