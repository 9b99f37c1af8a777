"""Targeted probe perturbation: do the latents of a class carry that class, and that one alone?

Shape letters: N rows, D width, F latents, C classes (and probes), R resamples (the first is the rows as they are).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    score: Interval
    """``intended - unintended``."""
    intended: Interval
    """Mean fall of a class's accuracy by its own latents."""
    unintended: Interval
    """Mean fall of a class's accuracy by another class's latents."""


@dataclass(frozen=True, kw_only=True)
class PerturbationReport(BenchmarkReport):
    """Targeted probe perturbation of a dictionary; ``targeted_perturbation`` defines the scores.

    Intervals are over resamples of the test rows.
    """

    benchmark = "tpp"

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
    config: AblationConfig
    """The options."""

    def _title(self) -> str:
        return (
            f"targeted probe perturbation of {counted(self.d_sae, 'latent')} at "
            f"{self.hook_name or 'a site not recorded'}"
        )

    def _tables(self) -> list[Table]:
        return [
            Table(
                ("latents ablated", "score", "intended", "unintended"),
                [(str(each.n_latents), each.score, each.intended, each.unintended) for each in self.scores],
            ),
            Table(
                ("class", "accuracy of its probe", "test rows"),
                [(each.label, each.accuracy, each.n_rows) for each in self.classes],
            ),
        ]


def targeted_perturbation(
    coder: Dictionary, rows: Tensor | EncodedRows, labels: Sequence[str], config: AblationConfig | None = None
) -> PerturbationReport:
    """The TPP score: what ablating a class's latents costs its own probe, less what it costs the others'.

    A probe for each class against all others is fitted on the activations, both sides of equal weight. A latent's
    effect on class c is ``max(0, E[f_i | c] - E[f_i | not c]) ⟨W_dec[i], w_c⟩`` on the training rows: only latents that
    are more active on the class count. The n with the largest positive effect are ablated in the test rows, the
    reconstruction error kept: ``x - Σ_i f_i W_dec[i]``. With ``A_{c'}`` the balanced accuracy of the
    probe of c' and ``A_{c'}(c)`` the same with the latents of c ablated, ``intended = mean_c (A_c - A_c(c))``,
    ``unintended = mean_{c ≠ c'} (A_{c'} - A_{c'}(c))`` and ``score`` is their difference: in about [-1, 1], 0 for
    latents that say nothing of classes, and 0.5 at most for perfect probes whose class falls to chance (or 1 where it
    is turned around). SAEBench (2503.09532), after Marks et al. 2024; as there, ``text_rows`` reads of each text the
    mean over its tokens, and ablating a latent in all of them takes its mean out.

    Differences from SAEBench 0.6.0: probes are solved exactly with an L2 penalty (there AdamW with L1, 20 epochs of
    batches of 16, on whose noise the scores depend), and accuracies are balanced over all rows in place of drawn ones.

    Known caveats: the score falls as training goes on, does not order dictionaries by known truth and varies greatly
    over training seeds (Chanin 2026, 2605.18229, advises against its canonical use); with many latents any
    dictionary's classes break, so compare at few; sparse dictionaries with wide latents score well by sheer size.
    Intervals resample test rows only.

    Args:
        coder: an SAE.
        rows: ``text_rows`` of the texts, or activations ``[N, d_in]`` of its site.
        labels: the class of each row, at least two classes.
        config: numbers of latents, split and seed; by default ``AblationConfig()``.

    Raises:
        ConfigError: not an SAE in the units of its site.
        ShapeError: rows of another width, or not as many labels.
        DataError: no rows, a value that is not finite, one class only, or a class with a single row.
    """
    config, sae = config or AblationConfig(), require_plain_sae(coder, "targeted probe perturbation")
    if len(labels) != len(rows):
        raise ShapeError(f"there must be one label for each row, got {len(labels)} for {len(rows)}")
    rows, names = encode_rows(sae, rows), sorted(set(labels))
    if len(names) < 2:
        raise DataError(f"targeted perturbation compares classes, got {names} alone; give rows of at least two")
    number = {name: place for place, name in enumerate(names)}
    y_N = torch.tensor([number[label] for label in labels])
    train, test = train_and_test(rows.groups_N, config.test_fraction, config.seed, "tpp", y_N)
    W_dec, probes, chosen = decoder_rows(sae), [], []
    for c in range(len(names)):
        is_c = y_N == c
        probe = fit_probe(rows.x_ND[train], is_c[train], weights_N=balanced_weights(is_c[train]), C=config.C)
        probes.append(probe)
        more_active = rows.mean_difference(is_c, among=train).clamp(min=0)
        chosen.append(strongest_latents(more_active * (W_dec @ probe.weight_D), config.n_latents[-1]))
    accuracies = _Accuracies(y_N[test], rows.groups_N[test], len(names), config.seed)
    ablated = [AblatedLogits(rows, test, latents, W_dec, probes) for latents in chosen]
    clean_RC = accuracies.of(ablated[0].without(0))
    scores = [
        _score(
            n,
            n_units(accuracies.groups),
            clean_RC,
            torch.stack([accuracies.of(each.without(n)) for each in ablated], dim=1),
        )
        for n in config.n_latents
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
        config=config,
        notes=(
            *rows.notes,
            *unconverged(dict(zip(names, probes, strict=True))),
            *few_units(min(len(each.unique()) for each in accuracies.groups), "texts of a class"),
        ),
    )


class _Accuracies:
    """Balanced accuracies of every class's probe on the test rows, and on resamples of them within each class."""

    def __init__(self, y_N: Tensor, groups_N: Tensor, n_classes: int, seed: int) -> None:
        self._y_NC = torch.nn.functional.one_hot(y_N, n_classes).bool()
        self._own = [(y_N == c).nonzero()[:, 0] for c in range(n_classes)]
        self._groups_N, self._seed = groups_N, seed
        self.groups = [groups_N[own] for own in self._own]
        """By class, the group of each of its rows."""
        counts = torch.tensor([len(own) for own in self._own], dtype=torch.float64)
        others = counts[:, None] * (1 - torch.eye(n_classes, dtype=torch.float64))
        self._weights_CC = 0.5 * torch.eye(n_classes, dtype=torch.float64) + 0.5 * others / others.sum(0)

    def of(self, logits_NC: Tensor) -> Tensor:
        """[R, C]: half the accuracy on the class's rows, half that on all others."""
        correct_NC = (logits_NC > 0) == self._y_NC
        by_class = [
            resampled_means(correct_NC[own], self._seed, "tpp", c, groups=self._groups_N[own])
            for c, own in enumerate(self._own)
        ]
        return (torch.stack(by_class, dim=1) * self._weights_CC).sum(1)


def _score(n: int, units: int, clean_RC: Tensor, ablated_RCC: Tensor) -> PerturbationScore:
    falls_RCC = clean_RC[:, None, :] - ablated_RCC
    n_classes = falls_RCC.shape[1]
    intended = falls_RCC.diagonal(dim1=1, dim2=2).mean(1)
    unintended = (falls_RCC.sum((1, 2)) - n_classes * intended) / (n_classes * (n_classes - 1))
    return PerturbationScore(
        n_latents=n,
        score=Interval.of(intended - unintended, units),
        intended=Interval.of(intended, units),
        unintended=Interval.of(unintended, units),
    )
