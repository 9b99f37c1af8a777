"""The table of the report's figures: one row each, which everything that shows, saves or compares a figure reads.

A row is a field of one of the dataclasses below: its name, type and meaning are the field's, the rest is a ``Figure``.
``Report`` is made of these dataclasses, so a figure added here is in the report, its JSON, the terminal, CSV and, where
it says so, the page, the training log and the choices of ``keep_best``. What is ``of`` a figure computes it. Only a
quantity that is not summed yet needs a second file, the one that sums it. ``docs/metrics.md`` is written from the rows
by ``scripts/figures_table.py``. Nothing here needs torch; ``figure.py`` says what a row holds, and
``figures_of_runs.py`` has the rows that compare runs of a model. A figure that is added later gets a default, so that
older reports are still read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from monosema.metrics.figure import (
    ANY,
    AT_LEAST_0,
    AT_MOST_1,
    COSINE,
    USUAL_RANK,
    Column,
    Figure,
    Needs,
    figure,
    figures_of,
)
from monosema.metrics.figures_of_runs import AblationLosses, PatternFigures, PredictionFigures

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class ActivationFigures:
    """What is measured on rows of activations. NaN where the definition divides by zero."""

    fve: float = figure(
        label="FVE",
        formula="1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the mean over all tokens evaluated",
        values="≤ 1; 0 predicts the mean",
        better="highest",
        group="reconstruction",
        rank=0,
        bounds=AT_MOST_1,
        of=lambda on: on.reconstruction.fve,
        left_out=lambda rest: 1 - rest["squared_error"] / rest["variation"],
        is_logged=True,
        column=Column("Reconstruction", "FVE", "fraction of variance explained: 1 is perfect, 0 predicts the mean"),
    )
    """Fraction of variance explained: 1 is perfect, 0 is predicting the mean."""
    fvu: float = figure(
        math.nan,
        label="FVU",
        formula="1 − `fve`",
        values="≥ 0",
        better="lowest",
        of=lambda on: on.reconstruction.fvu,
        column=Column("Reconstruction", "FVU", "fraction of variance unexplained"),
    )
    """Fraction of variance unexplained, ``1 - fve``."""
    fve_centred: float = figure(
        math.nan,
        label="centered FVE",
        formula="1 − Σ‖e − ē‖² / Σ‖x − x̄‖², e = x − x̂: without what a constant offset costs",
        values="≥ `fve`",
        better="highest",
        group="reconstruction",
        of=lambda on: on.reconstruction.fve_centred,
    )
    """``fve`` of the errors less their mean: what it would be without a constant offset."""
    fve_per_token_mean: float = figure(
        math.nan,
        label="mean FVE of a token",
        formula="mean of 1 − ‖x − x̂‖² / ‖x − x̄‖²; where the mean ablation was run",
        values="≤ 1",
        better="highest",
        group="reconstruction",
        bounds=AT_MOST_1,
        of=lambda on: on.terms["fve"] / on.terms["n"] if on.terms["n"] else math.nan,
        left_out=lambda rest: rest["fve"] / rest["n"],
    )
    """Mean over tokens of ``1 - ||x - x_hat||^2 / ||x - mean||^2``: tokens near the mean weigh as much as others. NaN
    where the mean is not known beforehand: it is that of the mean ablation."""
    mse: float = figure(
        label="MSE",
        formula="mean of ‖x − x̂‖² (summed over dimensions)",
        values="≥ 0",
        better="lowest",
        group="reconstruction",
        bounds=AT_LEAST_0,
        of=lambda on: on.reconstruction.mse,
        left_out=lambda rest: rest["squared_error"] / rest["n"],
        column=Column("Reconstruction", "MSE", "squared error per token, summed over dimensions"),
    )
    """Squared error per token, summed over dimensions."""
    cosine: float = figure(
        label="cosine",
        formula="mean of ⟨x, x̂⟩ / (‖x‖ ‖x̂‖)",
        values="−1 to 1",
        better="highest",
        group="reconstruction",
        bounds=COSINE,
        of=lambda on: on.reconstruction.cosine,
        left_out=lambda rest: rest["cosine_total"] / rest["n_nonzero"],
        column=Column("Reconstruction", "Cosine", "mean cosine of activation and reconstruction"),
    )
    """Mean cosine of activation and reconstruction."""
    norm_in: float = figure(
        math.nan,
        label="input norm",
        formula="mean of ‖x‖",
        values="≥ 0",
        of=lambda on: on.reconstruction.norm_in,
    )
    """Mean length of the activation."""
    norm_out: float = figure(
        math.nan,
        label="output norm",
        formula="mean of ‖x̂‖",
        values="≥ 0",
        of=lambda on: on.reconstruction.norm_out,
    )
    """Mean length of the reconstruction."""
    norm_ratio: float = figure(
        label="norm ratio",
        formula="mean of ‖x̂‖ / ‖x‖",
        values="below 1 is shrinkage",
        group="reconstruction",
        bounds=AT_LEAST_0,
        of=lambda on: on.reconstruction.norm_ratio,
        left_out=lambda rest: rest["norm_ratio_total"] / rest["n_nonzero"],
        column=Column(
            "Reconstruction",
            "Norm ratio",
            "mean of the reconstruction's length over the activation's: below 1 is shrinkage",
        ),
    )
    """Mean of the reconstruction's norm over the activation's; below 1 is shrinkage."""
    relative_reconstruction_bias: float = figure(
        label="relative reconstruction bias",
        formula="E‖x̂‖² / E⟨x, x̂⟩",
        values="1 is unbiased",
        group="reconstruction",
        bounds=ANY,
        of=lambda on: on.reconstruction.relative_reconstruction_bias,
        left_out=lambda rest: rest["squared_norm_out"] / rest["inner_product"],
        column=Column("Reconstruction", "Bias", "relative reconstruction bias: 1 is unbiased"),
    )
    """``E ||x_hat||^2 / E <x, x_hat>``: 1 is unbiased."""
    l0: float = figure(
        label="L0",
        formula="mean of the number of latents with f ≠ 0",
        values="0 to d_sae",
        group="sparsity",
        bounds=AT_LEAST_0,
        is_at_most_d_sae=True,
        of=lambda on: on.sparsity.l0,
        left_out=lambda rest: rest["l0"] / rest["n"],
        is_logged=True,
        column=Column("Sparsity", "L0", "mean number of latents that fire on a token"),
    )
    """Mean number of latents that fire on a token."""
    l0_std: float = figure(
        label="deviation of L0",
        formula="standard deviation over tokens of the number of latents with f ≠ 0",
        values="0 to d_sae",
        group="sparsity",
        of=lambda on: on.sparsity.l0_std,
    )
    """Its standard deviation over tokens."""
    l0_quantiles: Mapping[str, int] | None = figure(
        None,
        label="quantiles of L0",
        formula="least k such that so many per cent of the tokens, and at least one, have at most k latents with f ≠ 0",
        group="sparsity",
        of=lambda on: {f"{q:.0%}": on.sparsity.l0_quantile(q) for q in _QUANTILES},
    )
    """Of the number of latents that fire on a token: 0, 5, 25, 50, 75, 95 and 100 % of the tokens have at most so
    many."""
    l1: float = figure(
        label="L1",
        formula="mean of Σ_i abs(f_i)",
        values="≥ 0",
        group="sparsity",
        bounds=AT_LEAST_0,
        of=lambda on: on.sparsity.l1,
        left_out=lambda rest: rest["l1"] / rest["n"],
    )
    """Mean over tokens of the sum of absolute latent values."""
    dead_fraction: float = figure(
        label="dead fraction",
        formula="share of latents with no firing on the tokens evaluated; reliable from 100,000 tokens on",
        values="0 to 1",
        better="lowest",
        group="sparsity",
        of=lambda on: on.sparsity.dead_fraction,
        is_logged=True,
        column=Column("Sparsity", "Dead", "fraction of latents that fired on no token"),
    )
    """Fraction of latents that fired on no token."""
    dead_fraction_reliable: bool = figure(
        label="whether the dead fraction is reliable",
        formula="`n_tokens` ≥ 100,000",
        of=lambda on: on.sparsity.dead_fraction_reliable,
    )
    """Whether there were enough tokens (100,000) to call a silent latent dead."""
    share_over_1_percent: float = figure(
        math.nan,
        label="share over 1 %",
        formula="share of latents that fire on more than 1 % of the tokens",
        values="0 to 1",
        group="sparsity",
        rank=USUAL_RANK + 10,
        of=lambda on: on.sparsity.share_above(0.01),
    )
    """Fraction of latents that fire on more than 1 % of the tokens."""
    share_over_10_percent: float = figure(
        math.nan,
        label="share over 10 %",
        formula="share of latents that fire on more than 10 % of the tokens",
        values="0 to 1",
        group="sparsity",
        rank=USUAL_RANK + 10,
        of=lambda on: on.sparsity.share_above(0.1),
    )
    """Fraction of latents that fire on more than 10 % of the tokens."""
    log10_density_histogram: tuple[int, ...] | None = figure(
        None,
        label="histogram of densities",
        formula="latents by log10(density + 1e-10), 20 equal bins from −10 to 0",
        of=lambda on: on.sparsity.log10_density_histogram,
    )
    """Latents by ``log10(firing density + 1e-10)``, 20 equal bins from -10 to 0."""
    n_alive: int = figure(
        label="latents alive",
        formula="latents with a firing on the tokens evaluated",
        values="0 to d_sae",
        group="sparsity",
        of=lambda on: on.sparsity.n_alive,
    )
    """Latents that fired on at least one token."""
    d_sae: int = figure(
        label="latents",
        formula="latents in all",
        group="sparsity",
        of=lambda on: len(on.sparsity.firings),
        column=Column("Sparsity", "Latents", "latents in all", rank=0),
    )
    """Latents in all."""
    n_tokens: int = figure(
        label="tokens",
        formula="tokens measured for all of the above: positions that are not special",
        group="data",
        rank=10,
        of=lambda on: on.sparsity.n_tokens,
        column=Column("Tokens", "Measured", "tokens measured"),
    )
    """Tokens measured for everything above: positions that are not special."""
    n_documents: int | None = figure(
        None, label="documents", formula="documents these tokens are from", group="data", rank=10, needs="text"
    )
    """Documents these tokens are from; None where that is not known."""
    n_special_positions: int | None = figure(
        None, label="special positions", formula="special positions left out", group="data", needs="text"
    )
    """Special positions left out."""
    fve_all_rows: float | None = figure(
        None,
        label="FVE of all rows",
        formula="`fve` of all rows, where some were left out of everything else for their norm; see below",
        values="≤ 1",
        better="highest",
        group="reconstruction",
        rank=0,
        of=lambda on: None if on.all_rows is None else on.all_rows.fve,
    )
    """``fve`` of all rows, those left out for their norm as well; None where none was left out."""
    n_outlier_rows: int | None = figure(
        None, label="rows left out", formula="rows left out for their norm; see below", group="data"
    )
    """Rows left out of everything else because their norm is more than ``outlier_norm_multiple`` times the median; None
    where rows of any norm are measured."""
    outlier_norm_multiple: float | None = figure(
        None, label="outlier multiple", formula="the multiple of the median norm that their norm exceeds"
    )
    """That multiple."""


@dataclass(frozen=True, kw_only=True)
class WeightFigures:
    """What the weights alone say; None where they were not looked at. Each is the mean of a column of the table of
    latents."""

    encoder_decoder_cosine: float | None = figure(
        None,
        label="cosine of encoder and decoder",
        formula="mean over latents of the cosine of encoder column and decoder row; SAEs only",
        values="−1 to 1",
        group="weights",
        needs="weights",
        column=Column("Weights", "Enc·dec", "mean over latents of the cosine of encoder column and decoder row"),
    )
    """Mean over latents of the cosine of encoder column and decoder row; SAEs only."""
    max_decoder_cosine: float | None = figure(
        None,
        label="largest decoder cosine",
        formula="mean over latents of the largest cosine of its decoder row with another latent's",
        values="−1 to 1",
        group="weights",
        needs="weights",
        column=Column("Weights", "Max dec", "mean over latents of the largest cosine with another's decoder row"),
    )
    """Mean over latents of the largest cosine of its decoder row with another's."""
    max_encoder_cosine: float | None = figure(
        None,
        label="largest encoder cosine",
        formula="mean over latents of the largest cosine of its encoder column with another latent's",
        values="−1 to 1",
        group="weights",
        needs="weights",
        column=Column("Weights", "Max enc", "mean over latents of the largest cosine with another's encoder column"),
    )
    """Mean over latents of the largest cosine of its encoder column with another's."""
    encoder_norm: float | None = figure(
        None,
        label="encoder norm",
        formula="mean length of the encoder columns",
        values="≥ 0",
        group="weights",
        needs="weights",
    )
    """Mean length of the encoder columns."""
    decoder_norm: float | None = figure(
        None,
        label="decoder norm",
        formula="mean length of the decoder rows",
        values="≥ 0",
        group="weights",
        needs="weights",
    )
    """Mean length of the decoder rows."""


FIGURES: Mapping[str, Figure] = {
    **figures_of(ActivationFigures),
    **figures_of(PredictionFigures),
    **figures_of(PatternFigures),
    **figures_of(WeightFigures),
}
"""The table: each figure of a report by its name."""

OF_ABLATION: Mapping[str, Figure] = figures_of(AblationLosses)
"""The figures of each ablation, named ``ablations/ABLATION/NAME`` in full."""

BEST: Mapping[str, Literal["highest", "lowest"]] = {
    f"heldout/{name}": row.better for name, row in FIGURES.items() if row.is_logged and row.better
}
"""Logged figures with a best value, and which value that is; of several models, followed by ``/name``."""


def figure_named(name: str) -> Figure:
    """The row of a figure, or of ``ablations/ABLATION/NAME``."""
    return OF_ABLATION[name.rsplit("/", 1)[-1]] if name.startswith("ablations/") else FIGURES[name]


def names_needing(*needs: Needs) -> tuple[str, ...]:
    """The figures that are measured on one of ``needs``, in the table's order."""
    return tuple(name for name, row in FIGURES.items() if row.needs in needs)
