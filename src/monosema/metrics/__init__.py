"""Metrics: one pure function each, and sums that add for streams.

Its job: say what every reported number means, once. A function such as ``fve(x, x_hat)`` takes all tokens at once;
where they come in batches, the sums it is made of are frozen dataclasses that add::

    total = ReconstructionSums.of(x_1, x_hat_1) + ReconstructionSums.of(x_2, x_hat_2)
    total.fve == fve(cat(x_1, x_2), cat(x_hat_1, x_hat_2))      # to 1e-12, however the tokens are split

Sums are taken in float64 (on the CPU where a device has none). A quantity that is not defined for the tokens given
(0/0) is NaN, and its docstring says when; an input that is not finite is a ``DataError``.

May import: ``core`` and torch. Start reading in ``reconstruction.py``; ``sparsity.py`` counts firings and
``language.py`` compares next-token predictions and ``patterns.py`` attention; ``recovery.py`` compares a decoder with a
known dictionary, ``assignment.py`` pairs the two, ``weights.py`` compares latents with each other and
``crosscoders.py`` the sites of one with each other. ``published.py`` has figures as other libraries compute them,
defects included. ``figures.py`` is the table of the report's figures; it needs no torch, as configs read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.metrics.assignment": ("best_assignment",),
    "monosema.metrics.checks": ("require_finite",),
    "monosema.metrics.crosscoders": (
        "BETWEEN",
        "NOWHERE",
        "SHARED",
        "LatentScaling",
        "LatentScalingSums",
        "decoder_shares",
        "site_classes",
        "site_cosines",
    ),
    "monosema.metrics.groups": (
        "GroupSums",
        "jackknife_interval",
        "left_out_variation",
    ),
    "monosema.metrics.language": (
        "log_probs",
        "negative_entropy",
        "token_cross_entropy",
        "token_kl",
        "token_kl_from",
        "top_token",
    ),
    "monosema.metrics.latents": ("LatentSums",),
    "monosema.metrics.patterns": ("pattern_kl",),
    "monosema.metrics.published": (
        "PublishedSums",
        "attention_kl_transcoder_circuits",
        "explained_variance_legacy",
        "explained_variance_saebench_0_6",
        "frac_variance_explained_dictionary_learning",
        "l2_loss_dictionary_learning",
        "mse_saebench_0_6",
    ),
    "monosema.metrics.reconstruction": (
        "ReconstructionSums",
        "cosine",
        "fve",
        "fve_centred",
        "fve_per_dimension",
        "fvu",
        "mse",
        "norm_ratio",
        "relative_reconstruction_bias",
        "token_terms",
    ),
    "monosema.metrics.recovery": (
        "max_cosine",
        "mean_max_cosine",
        "recovered_fraction",
    ),
    "monosema.metrics.scores": (
        "ce_loss_score",
        "kl_score",
    ),
    "monosema.metrics.sparsity": (
        "RELIABLE_DEAD_TOKENS",
        "SparseRows",
        "SparsitySums",
        "dead_fraction",
        "firing_density",
        "l0",
        "l0_quantile",
        "l0_std",
        "l1",
        "log10_density",
        "log10_density_histogram",
        "n_alive",
        "share_above",
    ),
    "monosema.metrics.weights": (
        "encoder_decoder_cosine",
        "encoder_norms",
        "max_cosine_to_others",
    ),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.metrics.assignment import best_assignment
    from monosema.metrics.checks import require_finite
    from monosema.metrics.crosscoders import (
        BETWEEN,
        NOWHERE,
        SHARED,
        LatentScaling,
        LatentScalingSums,
        decoder_shares,
        site_classes,
        site_cosines,
    )
    from monosema.metrics.groups import GroupSums, jackknife_interval, left_out_variation
    from monosema.metrics.language import (
        log_probs,
        negative_entropy,
        token_cross_entropy,
        token_kl,
        token_kl_from,
        top_token,
    )
    from monosema.metrics.latents import LatentSums
    from monosema.metrics.patterns import pattern_kl
    from monosema.metrics.published import (
        PublishedSums,
        attention_kl_transcoder_circuits,
        explained_variance_legacy,
        explained_variance_saebench_0_6,
        frac_variance_explained_dictionary_learning,
        l2_loss_dictionary_learning,
        mse_saebench_0_6,
    )
    from monosema.metrics.reconstruction import (
        ReconstructionSums,
        cosine,
        fve,
        fve_centred,
        fve_per_dimension,
        fvu,
        mse,
        norm_ratio,
        relative_reconstruction_bias,
        token_terms,
    )
    from monosema.metrics.recovery import max_cosine, mean_max_cosine, recovered_fraction
    from monosema.metrics.scores import ce_loss_score, kl_score
    from monosema.metrics.sparsity import (
        RELIABLE_DEAD_TOKENS,
        SparseRows,
        SparsitySums,
        dead_fraction,
        firing_density,
        l0,
        l0_quantile,
        l0_std,
        l1,
        log10_density,
        log10_density_histogram,
        n_alive,
        share_above,
    )
    from monosema.metrics.weights import encoder_decoder_cosine, encoder_norms, max_cosine_to_others
