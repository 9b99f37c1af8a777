"""From sums over predictions and patterns to the losses of one model, with their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from monosema.evaluation.findings import CLEAN, SPLICED
from monosema.evaluation.patterns import TERMS as PATTERN_TERMS
from monosema.evaluation.patterns import PatternSums
from monosema.evaluation.predictions import TERMS
from monosema.evaluation.report import Ablation, ModelLosses
from monosema.metrics import GroupSums, jackknife_interval
from monosema.metrics.figure import ANY, Figure, Interval, Needs, Runs
from monosema.metrics.figures import FIGURES, OF_ABLATION
from monosema.metrics.figures_of_runs import AblationLosses
from monosema.metrics.groups import FEW_DOCUMENTS


def losses_of(runs: Mapping[str, GroupSums], ablations: Sequence[Ablation]) -> ModelLosses:
    """Means and scores of what was summed by run: clean, spliced and those of ``ablations``, of which the first is
    that of the flat fields."""
    values, intervals = _measured(runs, TERMS, "predictions", ablations)
    return ModelLosses(
        **values[""],
        n_predicted_tokens=int(runs[CLEAN].sums[:, 0].sum()),
        ablations={ablation: AblationLosses(**values[ablation]) for ablation in ablations},
        intervals=intervals,
    )


def with_patterns(
    losses: ModelLosses, patterns: Mapping[str, PatternSums], ablations: Sequence[Ablation]
) -> ModelLosses:
    """``losses`` with the figures of attention patterns, summed by run: spliced and those of ``ablations``."""
    runs = {run: each.groups for run, each in patterns.items()}
    values, intervals = _measured(runs, PATTERN_TERMS, "patterns", ablations)
    return replace(
        losses,
        **values[""],
        n_pattern_queries=int(patterns[SPLICED].groups.sums[:, 0].sum()),
        ablations={name: replace(each, **values[name]) for name, each in losses.ablations.items()},
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
        f"the intervals rest on {n_documents} documents; below {FEW_DOCUMENTS} they are wide and rough: give more "
        "held-out text"
    ]


def _measured(
    runs: Mapping[str, GroupSums], terms: Sequence[str], needs: Needs, ablations: Sequence[Ablation]
) -> tuple[dict[str, dict[str, Any]], dict[str, Interval]]:
    """The figures that need ``needs``, by ablation and, under the empty name, the flat ones; and by full name the
    interval of each that has one."""
    means = _by_run({run: sums.sums.sum(0) for run, sums in runs.items()}, terms)
    left_out = {run: sums.left_out for run, sums in runs.items()}
    n_left_out = len(left_out[SPLICED])
    without = [_by_run({run: rows[i] for run, rows in left_out.items()}, terms) for i in range(n_left_out)]
    values: dict[str, dict[str, Any]] = {"": {}, **{ablation: {} for ablation in ablations}}
    intervals: dict[str, Interval] = {}

    def add(name: str, row: Figure, ablation: str, full: str) -> None:
        assert row.of is not None
        value = values[ablation][name] = row.of(means(ablation))
        rest = torch.tensor([row.of(each(ablation)) for each in without], dtype=torch.float64)
        if (interval := jackknife_interval(value, rest, row.bounds or ANY)) is not None:
            intervals[full] = interval

    of_ablation = {name: row for name, row in OF_ABLATION.items() if row.needs == needs}
    for name, row in FIGURES.items():
        if row.needs == needs and row.of is not None:
            add(name, row, "", name)
    for ablation in ablations:
        for name, row in of_ablation.items():
            add(name, row, ablation, f"ablations/{ablation}/{name}")
    first = ablations[0]
    for name, row in of_ablation.items():
        if row.flat:
            values[""][row.flat] = values[first][name]
            if (known := intervals.get(f"ablations/{first}/{name}")) is not None:
                intervals[row.flat] = known
    return values, intervals


def _by_run(sums: Mapping[str, Tensor], terms: Sequence[str]) -> Callable[[str], Runs]:
    """The runs' means, given the ablation that is looked at."""
    means = {run: _means(each, terms) for run, each in sums.items()}
    return lambda ablation: Runs(means.get(CLEAN, {}), means[SPLICED], means.get(ablation, {}))


def _means(sums: Tensor, terms: Sequence[str]) -> dict[str, float]:
    n, *totals = sums.tolist()
    return {name: total / n if n else float("nan") for name, total in zip(terms[1:], totals, strict=True)}
