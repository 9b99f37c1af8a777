"""From sums over predictions and patterns to the losses of one model, with their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monosema.core.words import counted
from monosema.evaluation.findings import CLEAN, SPLICED
from monosema.evaluation.patterns import TERMS as PATTERN_TERMS
from monosema.evaluation.patterns import PatternSums
from monosema.evaluation.predictions import TERMS
from monosema.evaluation.report import Ablation, AblationLosses, Interval, ModelLosses
from monosema.metrics import GroupSums, ce_loss_score, jackknife_interval, kl_score
from monosema.metrics.groups import FEW_DOCUMENTS
from monosema.metrics.ranges import range_of

Means = Mapping[str, Mapping[str, float]]
"""By run, the mean of each of its terms."""


def losses_of(runs: Mapping[str, GroupSums], ablations: Sequence[Ablation]) -> ModelLosses:
    """Means and scores of what was summed by run: clean, spliced and those of ``ablations``, of which the first is
    that of the flat fields."""
    figures: dict[str, Callable[[Means], float]] = {
        "ce_clean": lambda of: of[CLEAN]["ce"],
        "ce_spliced": lambda of: of[SPLICED]["ce"],
        "kl": lambda of: of[SPLICED]["kl"],
        "top1_agreement": lambda of: of[SPLICED]["top1_agreement"],
    }
    for ablation in ablations:
        figures |= {f"ablations/{ablation}/{key}": _bound(figure, ablation) for key, figure in _OF_ABLATION.items()}
    for flat, of_ablation in _FLAT.items():
        figures[flat] = figures[f"ablations/{ablations[0]}/{of_ablation}"]
    values, intervals = _measured(runs, TERMS, figures)
    return ModelLosses(
        **{name: value for name, value in values.items() if not name.startswith("ablations/")},  # type: ignore[arg-type]
        n_predicted_tokens=int(runs[CLEAN].sums[:, 0].sum()),
        ablations={
            ablation: AblationLosses(**{key: values[f"ablations/{ablation}/{key}"] for key in _OF_ABLATION})
            for ablation in ablations
        },
        intervals=intervals,
    )


def with_patterns(
    losses: ModelLosses, patterns: Mapping[str, PatternSums], ablations: Sequence[Ablation]
) -> ModelLosses:
    """``losses`` with the figures of attention patterns, summed by run: spliced and those of ``ablations``."""
    figures: dict[str, Callable[[Means], float]] = {"pattern_kl": lambda of: of[SPLICED]["kl"]}
    for ablation in ablations:
        figures |= {f"ablations/{ablation}/{key}": _bound(each, ablation) for key, each in _PATTERNS.items()}
    figures["pattern_kl_ablated"] = figures[f"ablations/{ablations[0]}/pattern_kl"]
    figures["pattern_kl_score"] = figures[f"ablations/{ablations[0]}/pattern_kl_score"]
    values, intervals = _measured({run: each.groups for run, each in patterns.items()}, PATTERN_TERMS, figures)
    return replace(
        losses,
        **{name: value for name, value in values.items() if not name.startswith("ablations/")},  # type: ignore[arg-type]
        n_pattern_queries=int(patterns[SPLICED].groups.sums[:, 0].sum()),
        ablations={
            name: replace(each, **{key: values[f"ablations/{name}/{key}"] for key in _PATTERNS})
            for name, each in losses.ablations.items()
        },
        intervals={**losses.intervals, **intervals},
    )


def nothing_predicted(losses: ModelLosses, of_model: str = "") -> list[str]:
    """A note where no prediction was compared; none where one was."""
    if losses.n_predicted_tokens:
        return []
    return [f"no prediction{of_model} counted, so its losses are not defined; give longer contexts"]


def few_documents(n_documents: int) -> list[str]:
    """A note where intervals rest on few documents; none where there are enough, or no documents are known."""
    if not 0 < n_documents < FEW_DOCUMENTS:
        return []
    if n_documents == 1:
        return ["there is one document, so the figures have no intervals; give more held-out text"]
    return [
        f"the intervals rest on {counted(n_documents, 'document')}; below {FEW_DOCUMENTS} they are wide and rough: "
        "give more "
        "held-out text"
    ]


_FLAT = {"ce_ablated": "ce", "ce_loss_score": "ce_loss_score", "kl_ablated": "kl", "kl_score": "kl_score"}
"""Fields of ``ModelLosses`` that are those of its first ablation."""

_OF_ABLATION: dict[str, Callable[[Means, str], float]] = {
    "ce": lambda of, run: of[run]["ce"],
    "ce_loss_score": lambda of, run: ce_loss_score(of[CLEAN]["ce"], of[SPLICED]["ce"], of[run]["ce"]),
    "kl": lambda of, run: of[run]["kl"],
    "kl_score": lambda of, run: kl_score(of[SPLICED]["kl"], of[run]["kl"]),
    "top1_agreement": lambda of, run: of[run]["top1_agreement"],
}


_PATTERNS: dict[str, Callable[[Means, str], float]] = {
    "pattern_kl": lambda of, run: of[run]["kl"],
    "pattern_kl_score": lambda of, run: kl_score(of[SPLICED]["kl"], of[run]["kl"]),
}


def _measured(
    runs: Mapping[str, GroupSums], terms: Sequence[str], figures: Mapping[str, Callable[[Means], float]]
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Each figure of the runs' means, and its interval by document where there is one."""
    means = {run: _means(sums.sums.sum(0), terms) for run, sums in runs.items()}
    left_out = {run: sums.left_out for run, sums in runs.items()}
    n_left_out = len(left_out[SPLICED])
    without = [{run: _means(rows[i], terms) for run, rows in left_out.items()} for i in range(n_left_out)]
    values = {name: figure(means) for name, figure in figures.items()}
    intervals: dict[str, Interval] = {}
    for name, figure in figures.items():
        rest = torch.tensor([figure(each) for each in without], dtype=torch.float64)
        if (interval := jackknife_interval(values[name], rest, range_of(name))) is not None:
            intervals[name] = interval
    return values, intervals


def _bound(figure: Callable[[Means, str], float], run: str) -> Callable[[Means], float]:
    return lambda of: figure(of, run)


def _means(sums: Tensor, terms: Sequence[str]) -> dict[str, float]:
    n, *totals = sums.tolist()
    return {name: total / n if n else float("nan") for name, total in zip(terms[1:], totals, strict=True)}
