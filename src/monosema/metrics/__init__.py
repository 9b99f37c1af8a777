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
defects included.
"""

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
    ce_loss_score,
    kl_score,
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

__all__ = [
    "BETWEEN",
    "NOWHERE",
    "RELIABLE_DEAD_TOKENS",
    "SHARED",
    "GroupSums",
    "LatentScaling",
    "LatentScalingSums",
    "LatentSums",
    "PublishedSums",
    "ReconstructionSums",
    "SparseRows",
    "SparsitySums",
    "attention_kl_transcoder_circuits",
    "best_assignment",
    "ce_loss_score",
    "cosine",
    "dead_fraction",
    "decoder_shares",
    "encoder_decoder_cosine",
    "encoder_norms",
    "explained_variance_legacy",
    "explained_variance_saebench_0_6",
    "firing_density",
    "frac_variance_explained_dictionary_learning",
    "fve",
    "fve_centred",
    "fve_per_dimension",
    "fvu",
    "jackknife_interval",
    "kl_score",
    "l0",
    "l0_quantile",
    "l0_std",
    "l1",
    "l2_loss_dictionary_learning",
    "left_out_variation",
    "log10_density",
    "log10_density_histogram",
    "log_probs",
    "max_cosine",
    "max_cosine_to_others",
    "mean_max_cosine",
    "mse",
    "mse_saebench_0_6",
    "n_alive",
    "negative_entropy",
    "norm_ratio",
    "pattern_kl",
    "recovered_fraction",
    "relative_reconstruction_bias",
    "require_finite",
    "share_above",
    "site_classes",
    "site_cosines",
    "token_cross_entropy",
    "token_kl",
    "token_kl_from",
    "token_terms",
    "top_token",
]
