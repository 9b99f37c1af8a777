"""Targeted probe perturbation: do the latents of a class carry that class, and that one alone?

Shape letters: N rows, D width, F latents, C classes (and probes), R resamples (the first is the rows as they are).
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, kw_only=True)
class PerturbedClass:
    """One class."""

    label: str
    """Its name."""
    accuracy: float
    """Balanced accuracy of its probe on the test rows as they are."""
    n_rows: int
    """Test rows of the class."""
    latents: tuple[int, ...]
    """The latents with a positive effect on its probe, largest first, as many as were ablated at most."""


@dataclass(frozen=True, kw_only=True)
class PerturbationScore:
    """With so many latents of each class ablated."""

    n_latents: int
    """Latents ablated; fewer where fewer have a positive effect."""
    score: float
    """``intended - unintended``."""
    score_interval: Interval
    """Over resamples of the test rows."""
    intended: float
    """Mean fall of a class's accuracy by its own latents."""
    intended_interval: Interval
    """Over resamples of the test rows."""
    unintended: float
    """Mean fall of a class's accuracy by another class's latents."""
    unintended_interval: Interval
    """Over resamples of the test rows."""


@dataclass(frozen=True, kw_only=True)
class PerturbationReport:
    """Targeted probe perturbation of a dictionary; ``targeted_perturbation`` defines the scores."""

    scores: tuple[PerturbationScore, ...]
    """By number of latents."""
    classes: tuple[PerturbedClass, ...]
    """The classes, by name."""
    mean_accuracy: float
    """Mean of the probes' accuracies on rows as they are."""
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
        title = f"targeted probe perturbation of {self.d_sae:,} latents at {self.hook_name or 'a site not recorded'}"
        heads = ("latents ablated", "score", "95 %", "intended", "95 %", "unintended", "95 %")
        rows = [
            (
                each.n_latents,
                each.score,
                str(each.score_interval),
                each.intended,
                str(each.intended_interval),
                each.unintended,
                str(each.unintended_interval),
            )
            for each in self.scores
        ]
        notes = [
            f"{len(self.classes)} classes, mean accuracy of their probes {self.mean_accuracy:.4f}",
            f"seed {self.seed}, {self.n_train:,} rows fitted on, {self.n_test:,} measured",
        ]
        return table(title, heads, rows, notes)


def targeted_perturbation(
    coder: Dictionary, activations: Tensor, labels: Sequence[str], options: AblationOptions | None = None
) -> PerturbationReport:
    """The TPP score: what ablating a class's latents costs its own probe, less what it costs the others'.

    A probe for each class against all others is fitted on the activations, both sides of equal weight. A latent's
    effect on class c is ``(E[f_i | c] - E[f_i | not c]) ⟨W_dec[i], w_c⟩`` on the training rows (positive, too, for a
    latent of other classes that lowers the logit); the n latents with the largest positive effect are ablated in the
    test rows, the reconstruction error kept: ``x - Σ_i f_i W_dec[i]``. With
    ``A_{c'}`` the balanced accuracy of the probe of c' and ``A_{c'}(c)`` the same with the latents of c ablated,
    ``intended = mean_c (A_c - A_c(c))``, ``unintended = mean_{c ≠ c'} (A_{c'} - A_{c'}(c))`` and ``score`` is their
    difference: in about [-1, 1], 0 for latents that say nothing of classes, and 0.5 at most for perfect probes whose
    class falls to chance (or 1 where it is turned around). SAEBench (2503.09532), after Marks et al. 2024.

    Differences from SAEBench 0.6.0: probes are solved exactly with an L2 penalty (there AdamW with L1, 20 epochs of
    batches of 16, on whose noise the scores depend), and accuracies are balanced over all rows in place of drawn ones.

    Known caveats: the score falls as training goes on, does not order dictionaries by known truth and varies greatly
    over training seeds (Chanin 2026, 2605.18229, advises against its canonical use); with many latents any
    dictionary's classes break, so compare at few; sparse dictionaries with wide latents score well by sheer size.
    Intervals resample test rows only.

    Args:
        coder: an SAE.
        activations: ``[N, d_in]`` of its site (of texts, the mean over tokens in SAEBench).
        labels: the class of each row, at least two classes.
        options: numbers of latents, split and seed.

    Raises:
        ConfigError: not an SAE in the units of its site.
        ShapeError: activations of another width, or not as many labels.
        DataError: no rows, a value that is not finite, one class only, or a class with a single row.
    """
    options, sae = options or AblationOptions(), require_plain_sae(coder, "targeted probe perturbation")
    if len(labels) != len(activations):
        raise ShapeError(f"there must be one label for each row, got {len(labels)} for {len(activations)}")
    names = sorted(set(labels))
    rows = EncodedRows.of(sae, activations)
    if len(names) < 2:
        raise DataError(f"targeted perturbation compares classes, got {names} alone; give rows of at least two")
    number = {name: place for place, name in enumerate(names)}
    y_N = torch.tensor([number[label] for label in labels])
    train, test = split_rows(y_N, options.test_fraction, options.seed, "tpp")
    W_dec = sae.W_dec.detach()
    probes, chosen = [], []
    for c in range(len(names)):
        is_c = (y_N == c).to(rows.x_ND.device)
        probe = fit_probe(rows.x_ND[train], is_c[train], weights_N=balanced_weights(is_c[train]), c=options.c)
        probes.append(probe)
        difference = rows.mean_difference(is_c, among=train)
        chosen.append(strongest_latents(difference, W_dec, probe, options.n_latents[-1]))
    ablated = [AblatedLogits(rows, test, latents, W_dec, probes) for latents in chosen]
    resamples = _Resamples(y_N[test], len(names), options)
    clean_RC = resamples.accuracies(ablated[0].without(0))
    scores = [
        _score(n, clean_RC, torch.stack([resamples.accuracies(each.without(n)) for each in ablated], dim=1))
        for n in options.n_latents
    ]
    return PerturbationReport(
        scores=tuple(scores),
        classes=tuple(
            PerturbedClass(
                label=name,
                accuracy=float(clean_RC[0, c]),
                n_rows=int((y_N[test] == c).sum()),
                latents=tuple(chosen[c].tolist()),
            )
            for c, name in enumerate(names)
        ),
        mean_accuracy=float(clean_RC[0].mean()),
        n_train=len(train),
        n_test=len(test),
        d_sae=sae.d_sae,
        hook_name=sae.hook_name or "",
        seed=options.seed,
    )


class _Resamples:
    """Balanced accuracies of every class's probe on the test rows, and on resamples of them within each class."""

    def __init__(self, y_N: Tensor, n_classes: int, options: AblationOptions) -> None:
        generator = random_stream(options.seed, "benchmark", "tpp", "resamples")
        self._y_NC = torch.nn.functional.one_hot(y_N, n_classes).bool()
        self._rows = [(y_N == c).nonzero().squeeze(1) for c in range(n_classes)]
        self._shares = [
            torch.cat(
                [
                    torch.full((1, len(own)), 1 / len(own), dtype=torch.float64),
                    resample_shares(len(own), options.n_resamples, generator),
                ]
            )
            for own in self._rows
        ]
        counts = torch.tensor([len(own) for own in self._rows], dtype=torch.float64)
        others = counts[:, None] * (1 - torch.eye(n_classes, dtype=torch.float64))
        self._weights_CC = 0.5 * torch.eye(n_classes, dtype=torch.float64) + 0.5 * others / others.sum(0)

    def accuracies(self, logits_NC: Tensor) -> Tensor:
        """[R, C]: half the accuracy on the class's rows, half that on all others."""
        correct_NC = ((logits_NC > 0) == self._y_NC).double()
        by_class = [shares @ correct_NC[own] for own, shares in zip(self._rows, self._shares, strict=True)]
        return (torch.stack(by_class, dim=1) * self._weights_CC).sum(1)


def _score(n: int, clean_RC: Tensor, ablated_RCC: Tensor) -> PerturbationScore:
    falls_RCC = clean_RC[:, None, :] - ablated_RCC
    n_classes = falls_RCC.shape[1]
    intended = falls_RCC.diagonal(dim1=1, dim2=2).mean(1)
    unintended = (falls_RCC.sum((1, 2)) - n_classes * intended) / (n_classes * (n_classes - 1))
    score = intended - unintended
    return PerturbationScore(
        n_latents=n,
        score=float(score[0]),
        score_interval=percentile_interval(score[1:]),
        intended=float(intended[0]),
        intended_interval=percentile_interval(intended[1:]),
        unintended=float(unintended[0]),
        unintended_interval=percentile_interval(unintended[1:]),
    )
