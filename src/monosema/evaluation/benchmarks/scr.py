"""Spurious correlation removal: does ablating the latents of a confound give a biased probe its task back?

Shape letters: N rows, D width, F latents, R resamples (the first is the rows as they are). A cell is a pair of labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import DataError, ShapeError
from monosema.core.words import counted
from monosema.evaluation.benchmarks.ablation import AblatedLogits, strongest_latents
from monosema.evaluation.benchmarks.config import AblationConfig
from monosema.evaluation.benchmarks.intervals import Interval, few_units, n_units, resampled_means
from monosema.evaluation.benchmarks.probes import balanced_weights, fit_probe, unconverged
from monosema.evaluation.benchmarks.report import BenchmarkReport, Table
from monosema.evaluation.benchmarks.rows import EncodedRows, decoder_rows, encode_rows, require_plain_sae
from monosema.evaluation.benchmarks.splits import train_and_test

_LEAST_GAP = 1e-3
"""Between biased and oracle probe; nothing can be won back below it (SAEBench's)."""


@dataclass(frozen=True, kw_only=True)
class RemovalScore:
    """With so many latents ablated."""

    n_latents: int
    """Latents ablated; fewer where fewer have an effect."""
    score: Interval
    """The score of the direction in which the biased probe is weaker."""
    target: Interval
    """Score of the biased probe on the target, without the latents of the spurious label."""
    spurious: Interval
    """Score of the biased probe on the spurious label, without the latents of the target."""


@dataclass(frozen=True, kw_only=True)
class RemovalReport(BenchmarkReport):
    """Spurious correlation removal by a dictionary; ``spurious_removal`` defines the scores.

    Intervals are over resamples of the test rows.
    """

    benchmark = "scr"

    scores: tuple[RemovalScore, ...]
    """By number of latents."""
    biased_target: float
    """Accuracy of the biased probe on the target, every cell of equal weight."""
    biased_spurious: float
    """The same on the spurious label."""
    oracle_target: float
    """Accuracy of the probe fitted on the target in all cells."""
    oracle_spurious: float
    """The same of the spurious label."""
    n_train: int
    """Rows that probes were fitted and latents chosen on."""
    n_test: int
    """Rows that accuracies were measured on."""
    config: AblationConfig
    """The options."""

    def _title(self) -> str:
        return (
            f"spurious correlation removal with {counted(self.d_sae, 'latent')} at "
            f"{self.hook_name or 'a site not recorded'}"
        )

    def _tables(self) -> list[Table]:
        return [
            Table(
                ("latents ablated", "score", "target", "spurious"),
                [(str(each.n_latents), each.score, each.target, each.spurious) for each in self.scores],
            ),
            Table(
                ("accuracy", "on the target", "on the spurious label"),
                [
                    ("biased probe", self.biased_target, self.biased_spurious),
                    ("oracle probes", self.oracle_target, self.oracle_spurious),
                ],
            ),
        ]


def spurious_removal(
    coder: Dictionary,
    rows: Tensor | EncodedRows,
    target: Tensor,
    spurious: Tensor,
    config: AblationConfig | None = None,
) -> RemovalReport:
    """The SCR score: how much of what a confound cost a probe is won back by ablating the confound's latents.

    A *biased* probe of the target is fitted where target and spurious label agree, so that it cannot tell them apart;
    *oracle* probes of each label on all cells (pairs of labels) of equal weight. The n latents with the largest effect
    ``|(E[f_i | spurious] - E[f_i | not]) ⟨W_dec[i], w⟩|`` on the spurious oracle w are ablated in the test rows, the
    reconstruction error kept. With accuracies A over the test rows, each cell of equal weight::

        score = (A_ablated - A_biased) / (A_oracle - A_biased)

    for the biased probe on the target; likewise on the spurious label with the target's latents ablated. The headline
    is the direction in which the biased probe is weaker. 1 is all won back, 0 nothing (also where the gap is below
    0.001, which leaves nothing to win), below 0 is harm, above 1 possible. SAEBench (2503.09532), after SHIFT (Marks
    et al. 2024, 2403.19647); there with probes trained by AdamW.

    Known caveats: at many latents it runs against known truth, and it varies greatly over training seeds (Chanin 2026,
    2605.18229, advises against its canonical use); it is undefined in spirit where the biased probe is not biased, so
    look at the accuracies. Intervals resample test rows within cells only.

    Args:
        coder: an SAE.
        rows: ``text_rows`` of the texts, or activations ``[N, d_in]`` of its site.
        target: ``[N]`` bool, what a probe should tell.
        spurious: ``[N]`` bool, what it is confounded with; every pair of the two must occur at least twice.
        config: numbers of latents, split and seed; by default ``AblationConfig()``.

    Raises:
        ConfigError: not an SAE in the units of its site.
        ShapeError: rows of another width, or labels that are not [N] bool.
        DataError: no rows, a value that is not finite, or a pair of labels with fewer than two rows.
    """
    config, sae = config or AblationConfig(), require_plain_sae(coder, "spurious correlation removal")
    for name, labels in (("target", target), ("spurious", spurious)):
        if labels.dtype != torch.bool or labels.shape != (len(rows),):
            raise ShapeError(f"{name} must be a bool for each row, got {list(labels.shape)} {labels.dtype}")
    rows, target, spurious = encode_rows(sae, rows), target.cpu(), spurious.cpu()
    cells = 2 * target.long() + spurious.long()
    counts = torch.bincount(cells, minlength=4).tolist()
    if min(counts) < 2:
        raise DataError(
            "every pair of target and spurious label needs at least two rows, got "
            f"{counts[3]} of both, {counts[2]} of the target alone, {counts[1]} of the spurious alone, {counts[0]} of "
            "neither; give rows of all four, balance is made by weights"
        )
    train, test = train_and_test(rows.groups_N, config.test_fraction, config.seed, "scr", cells)
    x, weights, W_dec = rows.x_ND, balanced_weights(cells[train]), decoder_rows(sae)
    agree = train[(target == spurious)[train]]
    biased = fit_probe(x[agree], target[agree], weights_N=balanced_weights(target[agree]), C=config.C)
    of_target, of_spurious = (
        fit_probe(x[train], each[train], weights_N=weights, C=config.C) for each in (target, spurious)
    )
    accuracies = _Accuracies(cells[test], rows.groups_N[test], config.seed)
    directions = []
    for judged, oracle, removed, confound in (
        (target, of_target, spurious, of_spurious),
        (spurious, of_spurious, target, of_target),
    ):
        difference = rows.mean_difference(removed, train, weights)
        latents = strongest_latents((difference * (W_dec @ confound.weight_D)).abs(), config.n_latents[-1])
        logits = AblatedLogits(rows, test, latents, W_dec, [biased])
        base = accuracies.of(logits.without(0)[:, 0] > 0, judged[test])
        best = accuracies.of(oracle.predict(x[test]), judged[test])
        ablated = [accuracies.of(logits.without(n)[:, 0] > 0, judged[test]) for n in config.n_latents]
        directions.append((float(base[0]), float(best[0]), [_won_back(base, best, each) for each in ablated]))
    (base_t, best_t, won_t), (base_s, best_s, won_s) = directions
    headline = won_t if base_t <= base_s else won_s
    own = [accuracies.groups_of(cell) for cell in range(4)]
    units = n_units(own)
    probes = {"the biased target": biased, "the target": of_target, "the spurious label": of_spurious}
    return RemovalReport(
        scores=tuple(
            RemovalScore(
                n_latents=n,
                score=Interval.of(score, units),
                target=Interval.of(t, units),
                spurious=Interval.of(s, units),
            )
            for n, score, t, s in zip(config.n_latents, headline, won_t, won_s, strict=True)
        ),
        biased_target=base_t,
        biased_spurious=base_s,
        oracle_target=best_t,
        oracle_spurious=best_s,
        n_train=len(train),
        n_test=len(test),
        d_sae=sae.d_sae,
        hook_name=sae.hook_name or "",
        config=config,
        notes=(
            *rows.notes,
            *unconverged(probes),
            *few_units(min(len(each.unique()) for each in own), "texts of a pair of labels"),
        ),
    )


class _Accuracies:
    """Accuracies on the test rows with every cell of equal weight, and on resamples of them within each cell."""

    def __init__(self, cells_N: Tensor, groups_N: Tensor, seed: int) -> None:
        self._cells_N, self._groups_N, self._seed = cells_N, groups_N, seed

    def groups_of(self, cell: int) -> Tensor:
        """The group of each of the cell's rows."""
        return self._groups_N[self._cells_N == cell]

    def of(self, predicted_N: Tensor, y_N: Tensor) -> Tensor:
        """[R]."""
        is_right = predicted_N == y_N
        cells = [(self._cells_N == cell).nonzero()[:, 0] for cell in range(4)]
        means = [
            resampled_means(is_right[own], self._seed, "scr", cell, groups=self._groups_N[own])
            for cell, own in enumerate(cells)
        ]
        return torch.stack(means).mean(0)


def _won_back(base_R: Tensor, best_R: Tensor, ablated_R: Tensor) -> Tensor:
    gap = best_R - base_R
    return torch.where(gap < _LEAST_GAP, torch.zeros_like(gap), (ablated_R - base_R) / gap)
