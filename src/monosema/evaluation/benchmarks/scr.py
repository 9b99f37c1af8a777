"""Spurious correlation removal: does ablating the latents of a confound give a biased probe its task back?

Shape letters: N rows, D width, F latents, R resamples (the first is the rows as they are). A cell is a pair of labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import DataError, ShapeError
from monosema.core.seeds import random_stream
from monosema.evaluation.benchmarks.ablation import AblatedLogits, AblationOptions, strongest_latents
from monosema.evaluation.benchmarks.shares import Interval, percentile_interval, resample_shares
from monosema.evaluation.benchmarks.probes import balanced_weights, fit_probe
from monosema.evaluation.benchmarks.rows import EncodedRows, require_plain_sae, split_rows
from monosema.evaluation.benchmarks.tables import plain_fields, table

_LEAST_GAP = 1e-3
"""Between biased and oracle probe; nothing can be won back below it (SAEBench's)."""


@dataclass(frozen=True, kw_only=True)
class RemovalScore:
    """With so many latents ablated."""

    n_latents: int
    """Latents ablated; fewer where fewer have a positive effect."""
    score: float
    """The score of the direction in which the biased probe is weaker."""
    score_interval: Interval
    """Over resamples of the test rows."""
    target: float
    """Score of the biased probe on the target, without the latents of the spurious label."""
    target_interval: Interval
    """Over resamples of the test rows."""
    spurious: float
    """Score of the biased probe on the spurious label, without the latents of the target."""
    spurious_interval: Interval
    """Over resamples of the test rows."""


@dataclass(frozen=True, kw_only=True)
class RemovalReport:
    """Spurious correlation removal by a dictionary; ``spurious_removal`` defines the scores."""

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
    d_sae: int
    """Latents of the dictionary."""
    hook_name: str
    """Its site."""
    seed: int
    """Of the split and the resamples."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; NaN becomes None."""
        return plain_fields(self)

    def __str__(self) -> str:
        title = f"spurious correlation removal with {self.d_sae:,} latents at {self.hook_name or 'a site not recorded'}"
        heads = ("latents ablated", "score", "95 %", "target", "95 %", "spurious", "95 %")
        rows = [
            (
                each.n_latents,
                each.score,
                str(each.score_interval),
                each.target,
                str(each.target_interval),
                each.spurious,
                str(each.spurious_interval),
            )
            for each in self.scores
        ]
        notes = [
            f"biased probe: {self.biased_target:.4f} on the target, {self.biased_spurious:.4f} on the spurious label",
            f"oracle probes: {self.oracle_target:.4f} and {self.oracle_spurious:.4f}",
            f"seed {self.seed}, {self.n_train:,} rows fitted on, {self.n_test:,} measured",
        ]
        return table(title, heads, rows, notes)


def spurious_removal(
    coder: Dictionary,
    activations: Tensor,
    target: Tensor,
    spurious: Tensor,
    options: AblationOptions | None = None,
) -> RemovalReport:
    """The SCR score: how much of what a confound cost a probe is won back by ablating the confound's latents.

    A *biased* probe of the target is fitted where target and spurious label agree, so that it cannot tell them apart;
    *oracle* probes of each label on all cells (pairs of labels) of equal weight. The n latents with the largest
    positive effect on the spurious oracle (``targeted_perturbation`` defines the effect) are ablated in the test rows,
    the reconstruction error kept. With accuracies A over the test rows, each cell of equal weight::

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
        activations: ``[N, d_in]`` of its site.
        target: ``[N]`` bool, what a probe should tell.
        spurious: ``[N]`` bool, what it is confounded with; every pair of the two must occur at least twice.
        options: numbers of latents, split and seed.

    Raises:
        ConfigError: not an SAE in the units of its site.
        ShapeError: activations of another width, or labels that are not [N] bool.
        DataError: no rows, a value that is not finite, or a pair of labels with fewer than two rows.
    """
    options, sae = options or AblationOptions(), require_plain_sae(coder, "spurious correlation removal")
    for name, labels in (("target", target), ("spurious", spurious)):
        if labels.dtype != torch.bool or labels.shape != activations.shape[:1]:
            raise ShapeError(f"{name} must be a bool for each row, got {list(labels.shape)} {labels.dtype}")
    rows = EncodedRows.of(sae, activations)
    target, spurious = target.cpu(), spurious.cpu()
    cells = 2 * target.long() + spurious.long()
    counts = torch.bincount(cells, minlength=4)
    if int(counts.min()) < 2:
        raise DataError(
            "every pair of target and spurious label needs at least two rows, got "
            f"{counts[3]} of both, {counts[2]} of the target alone, {counts[1]} of the spurious alone, {counts[0]} of "
            "neither; give rows of all four, balance is made by weights"
        )
    train, test = split_rows(cells, options.test_fraction, options.seed, "scr")
    x, weights = rows.x_ND.cpu(), balanced_weights(cells[train])
    agree = train[(target == spurious)[train]]
    biased = fit_probe(x[agree], target[agree], weights_N=balanced_weights(target[agree]), c=options.c)
    W_dec = sae.W_dec.detach()
    resamples = _Resamples(cells[test], options)
    directions = []
    for judged, removed in ((target, spurious), (spurious, target)):
        oracle = fit_probe(x[train], judged[train], weights_N=weights, c=options.c)
        confound = fit_probe(x[train], removed[train], weights_N=weights, c=options.c)
        difference = rows.mean_difference(removed, train, weights)
        device = rows.x_ND.device
        latents = strongest_latents(difference, W_dec, confound.to(device), options.n_latents[-1])
        logits = AblatedLogits(rows, test, latents, W_dec, [biased.to(device)])
        base = resamples.accuracies(logits.without(0)[:, 0] > 0, judged[test])
        best = resamples.accuracies(oracle.predict(x[test]), judged[test])
        ablated = [resamples.accuracies(logits.without(n)[:, 0] > 0, judged[test]) for n in options.n_latents]
        directions.append((float(base[0]), float(best[0]), [_won_back(base, best, each) for each in ablated]))
    (base_t, best_t, of_target), (base_s, best_s, of_spurious) = directions
    headline = of_target if base_t <= base_s else of_spurious
    return RemovalReport(
        scores=tuple(
            RemovalScore(
                n_latents=n,
                score=float(headline[place][0]),
                score_interval=percentile_interval(headline[place][1:]),
                target=float(of_target[place][0]),
                target_interval=percentile_interval(of_target[place][1:]),
                spurious=float(of_spurious[place][0]),
                spurious_interval=percentile_interval(of_spurious[place][1:]),
            )
            for place, n in enumerate(options.n_latents)
        ),
        biased_target=base_t,
        biased_spurious=base_s,
        oracle_target=best_t,
        oracle_spurious=best_s,
        n_train=len(train),
        n_test=len(test),
        d_sae=sae.d_sae,
        hook_name=sae.hook_name or "",
        seed=options.seed,
    )


class _Resamples:
    """Accuracies on the test rows with every cell of equal weight, and on resamples of them within each cell."""

    def __init__(self, cells_N: Tensor, options: AblationOptions) -> None:
        generator = random_stream(options.seed, "benchmark", "scr", "resamples")
        n = options.n_resamples
        self._shares_RN = torch.zeros(1 + n, len(cells_N), dtype=torch.float64)
        for cell in range(4):
            own = (cells_N == cell).nonzero().squeeze(1)
            self._shares_RN[0, own] = 0.25 / len(own)
            self._shares_RN[1:, own] = 0.25 * resample_shares(len(own), n, generator)

    def accuracies(self, predicted_N: Tensor, y_N: Tensor) -> Tensor:
        """[R]."""
        return self._shares_RN @ (predicted_N.cpu() == y_N).double()


def _won_back(base_R: Tensor, best_R: Tensor, ablated_R: Tensor) -> Tensor:
    gap = best_R - base_R
    return torch.where(gap < _LEAST_GAP, torch.zeros_like(gap), (ablated_R - base_R) / gap)
