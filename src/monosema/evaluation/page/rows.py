"""What is compared: a dictionary in a model whose predictions it changes, with its figures by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from monosema.core.printable import printable
from monosema.evaluation.report import ModelLosses, Report
from monosema.metrics.figure import Interval
from monosema.metrics.figures import OF_ABLATION, figure_named

_SHOWN_FINGERPRINT = 8


@final
@dataclass(frozen=True)
class Ground:
    """What must be the same for two dictionaries' figures to be comparable."""

    model: str
    """The model, or all that a dictionary writes to; empty where none was run."""
    site: str
    """The site written."""
    tokens: str
    """Which tokens: the fingerprint of their split, or what is known in its place."""

    def parts(self) -> tuple[str, str, str]:
        """In words, without empty ones."""
        return (self.model or "no model", self.site or "site not recorded", self.tokens)


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A dictionary; of one that writes to several models, one row for each."""

    dictionary: int
    """Its number."""
    name: str
    """Its name, printable."""
    report: Report
    """Its figures."""
    model: str
    """The model's name within the report; empty where there is one."""

    @property
    def losses(self) -> Report | ModelLosses:
        """What has the figures of the model's predictions."""
        return self.report.models[self.model] if self.report.models and self.model else self.report

    def value(self, key: str) -> float | None:
        """A figure by its name in the report (``fve``, ``ablations/zero/ce_loss_score``); None where it was not
        measured, NaN where it is not defined."""
        if key.startswith("ablations/"):
            return self._of_ablation(*key.split("/")[1:])
        value: float | None = getattr(self.losses if _is_of_model(key) else self.report, key)
        return math.nan if value is not None and not math.isfinite(value) else value

    def interval(self, key: str) -> Interval | None:
        """Its 95 % interval, where both ends are known."""
        interval = (self.losses if _is_of_model(key) else self.report).intervals.get(key)
        return interval if interval is not None and all(math.isfinite(end) for end in interval) else None

    def reason(self, key: str) -> str:
        """Why a figure is not there."""
        value, is_measured = self.value(key), self.losses.ce_clean is not None
        if figure_named(key).needs == "weights":
            if self.report.max_decoder_cosine is None:
                return "weights were not looked at"
            if key == "encoder_decoder_cosine":
                return "defined for dictionaries that write the site they read"
        elif value is None and not is_measured:
            return "predictions were not compared: only activations were read, or the notes below say why"
        elif value is None and key.startswith("ablations/") and key.split("/")[1] not in self._ablations():
            return f"the {key.split('/')[1]} ablation was not run"
        return "not defined: its formula divides by zero"

    def ground(self, *, of_losses: bool) -> Ground:
        """What its figures can be compared on; those of predictions are of one model each."""
        report = self.report
        model = report.model_name or ""
        if of_losses and self.model:
            model = f"{self.model} of {model}"
        known = report.tokens_fingerprint
        tokens = f"tokens {known[:_SHOWN_FINGERPRINT]}" if known else f"{report.n_tokens:,} tokens not recorded"
        return Ground(printable(model), printable(report.hook_name_out), printable(tokens))

    def _ablations(self) -> set[str]:
        return set(self.losses.ablations or {}) | {self.report.ablation or ""}

    def _of_ablation(self, ablation: str, figure: str) -> float | None:
        found = (self.losses.ablations or {}).get(ablation)
        if found is not None:
            value: float | None = getattr(found, figure)
        else:  # reports written before there were several
            flat = OF_ABLATION[figure].flat
            value = getattr(self.losses, flat) if self.report.ablation == ablation and flat else None
        return math.nan if value is not None and not math.isfinite(value) else value


def _is_of_model(key: str) -> bool:
    """Whether a figure is of one model: a report of several has one for each."""
    return figure_named(key).needs in ("predictions", "patterns")


def rows_of(reports: Mapping[str, Report]) -> list[Row]:
    """In the order given."""
    return [
        Row(dictionary=number, name=name, report=report, model=model)
        for number, (name, report) in enumerate(zip(short_names(list(reports)), reports.values(), strict=True))
        for model in (report.models or [""])
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Printable names without the folders that all begin with."""
    parts = [name.rstrip("/").split("/") for name in names]
    n_common = 0
    while len(names) > 1 and all(len(each) > n_common + 1 and each[n_common] == parts[0][n_common] for each in parts):
        n_common += 1
    return [printable("/".join(each[n_common:])) or "dictionary" for each in parts]


def grounds(rows: Sequence[Row]) -> list[Ground]:
    """All that rows are compared on, each once: a ground's place is its colour and marker."""
    found: dict[Any, None] = {}
    for of_losses in (False, True):
        for row in rows:
            if not of_losses or row.losses.ce_clean is not None:
                found[row.ground(of_losses=of_losses)] = None
    return list(found)


def ground_labels(found: Sequence[Ground]) -> list[str]:
    """In words: model and site, and the tokens where only these tell two grounds apart."""
    places = [(ground.model, ground.site) for ground in found]
    return [
        " · ".join(ground.parts()[: 3 if places.count(place) > 1 else 2])
        for ground, place in zip(found, places, strict=True)
    ]
