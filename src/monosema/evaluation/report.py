"""What an evaluation found: one frozen record, readable in a terminal, a notebook and a JSON file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor

from monosema.core.config import made_of
from monosema.core.errors import FileError, first_line
from monosema.core.files import read_json
from monosema.core.plain import is_same, list_in, texts_in
from monosema.core.printable import escaped, terminal_lines
from monosema.evaluation.latent_table import LatentTable
from monosema.metrics.figure import Interval, figure, figures_of, shown_in_groups
from monosema.metrics.figures import OF_ABLATION, ActivationFigures, WeightFigures
from monosema.metrics.figures_of_runs import AblationLosses, F, N, PatternFigures, PredictionFigures

VERSION = 1
"""Of the JSON that ``Report.to_dict`` gives; fields are added without a new one."""

Ablation = Literal["zero", "mean"]
"""What the site becomes in an ablated run: zero, or its mean over the tokens run ablated."""

Overlap = Literal["none", "same tokens", "unknown"]
"""Whether the tokens evaluated were trained on, from the fingerprints both sides recorded."""

_NESTED = ("ablations", "intervals")

_LONG = ("firing_density", "fve_per_dimension", "pattern_kl_per_position", "latents")
"""Fields with a value for each latent, dimension or position."""


@dataclass(frozen=True, kw_only=True)
class _Losses(PredictionFigures[F, N]):
    """The figures of predictions, and those of each ablation."""

    ablations: Mapping[str, AblationLosses] | None = None
    """By ablation, each that was run; ``ce_ablated`` and so on are those of the first, a report's ``ablation``."""


@dataclass(frozen=True, kw_only=True)
class _Intervals:
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """By field, and by ``ablations/NAME/FIELD``: 95 % confidence intervals by document."""


@dataclass(frozen=True, kw_only=True)
class ModelLosses(PatternFigures, _Intervals, _Losses[float, int]):
    """What one model's predictions lose when its sites are replaced; averages over ``n_predicted_tokens``."""

    ablations: Mapping[str, AblationLosses] = field()
    """By ablation, each that was run; the fields above are those of the first."""
    intervals: Mapping[str, Interval] = field()
    """By field, and by ``ablations/NAME/FIELD``: 95 % intervals by document."""

    def __post_init__(self) -> None:
        missing = [name for name in figures_of(PredictionFigures) if getattr(self, name) is None]
        if missing:
            raise TypeError(
                f"ModelLosses: {', '.join(missing)} missing; only figures of attention patterns may be None"
            )


@dataclass(frozen=True, kw_only=True)
class Report(
    _Intervals,
    WeightFigures,
    PatternFigures,
    _Losses[float | None, int | None],
    ActivationFigures,  # in a file's order
):
    """The metrics of one coder on one set of tokens; ``monosema.metrics.figures`` defines each.

    A value is NaN where its definition divides by zero, and None where it was not measured; ``notes`` says why.
    ``intervals`` has the 95 % confidence interval by document of each figure that depends on text.
    """

    fve_per_site: Mapping[str, float] | None = None
    """By the name of each site written, where there are several: ``fve`` there alone."""
    models: Mapping[str, ModelLosses] | None = None
    """By model, where the coder writes sites of several: each run spliced and ablated at its own sites. The losses
    above are then None."""
    ablation: Ablation | None = None
    """What the site became in the ablated run of ``ce_ablated``, ``kl_ablated`` and their scores."""
    hook_name: str = ""
    """Site read."""
    hook_name_out: str = ""
    """Site reconstructed, spliced and ablated; the same as ``hook_name`` for an SAE."""
    model_name: str | None = None
    """The model whose predictions were compared."""
    split: str = figure("", group="data", rank=0, needs="text")
    """Which tokens: the split's name (``"heldout"``), ``"contexts"`` for ids given, ``"activations"`` without text."""
    tokens_fingerprint: str | None = figure(None, group="data", needs="text")
    """sha256 of that split."""
    overlap: Overlap = figure("unknown", group="data", needs="text")
    """Whether the coder was trained on these tokens."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""
    firing_density: Tensor | None = field(default=None, repr=False, compare=False)
    """``[d_sae]`` float64: fraction of tokens on which each latent fired."""
    fve_per_dimension: Tensor | None = field(default=None, repr=False, compare=False)
    """``[d_out]`` float64: ``fve`` of each dimension by itself."""
    pattern_kl_per_position: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    """By run (``"spliced"`` and each ablation), ``[T]`` float64: ``pattern_kl`` of the queries at each position of a
    context, NaN where none counts."""
    latents: LatentTable | None = field(default=None, repr=False, compare=False)
    """The table of all latents; None where weights were not looked at."""

    def to_dict(self, *, per_latent: bool = False) -> dict[str, Any]:
        """The fields as JSON values: NaN becomes None; a value for each latent, dimension or position only if asked
        for."""
        plain: dict[str, Any] = {"version": VERSION}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in _LONG:
                plain[each.name] = plain_value(value)
            elif per_latent:
                plain[each.name] = value.columns() if isinstance(value, LatentTable) else plain_value(value)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """The report that ``to_dict`` wrote, without what is there for each latent.

        None becomes NaN again in fields that are always measured, and stays None in the others.
        """
        if not is_same(plain.get("version", VERSION), VERSION):
            raise ValueError(f"reports of version {VERSION} are read, this has {plain['version']!r:.80}")
        values: dict[str, Any] = {}
        for each in fields(cls):
            if each.name in plain and each.name not in _LONG:
                value = plain[each.name]
                is_always = each.default is MISSING or isinstance(each.default, float)
                values[each.name] = math.nan if value is None and is_always else value
        if values.get("fve_per_site") is not None:
            values["fve_per_site"] = {name: _number(value) for name, value in values["fve_per_site"].items()}
        if values.get("log10_density_histogram") is not None:
            values["log10_density_histogram"] = tuple(list_in(values, "log10_density_histogram", "the report"))
        if values.get("models") is not None:
            values["models"] = {
                key: made_of(ModelLosses, _numbers(ModelLosses, losses) | _nested(losses), f"model {key}")
                for key, losses in values["models"].items()
            }
        values |= _nested(values) | {"notes": texts_in(plain, "notes", "the report")}
        return made_of(cls, values, "the report")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """The report whose ``to_dict`` was written as JSON to ``path``; ``FileError`` where it is damaged."""
        plain = read_json(path)
        try:
            report = cls.from_dict(plain)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} is damaged: {type(error).__name__}: {first_line(error)}") from error
        return report

    def __str__(self) -> str:
        lines = [self.title]
        for group, rows in self._shown_groups().items():
            lines += labelled(group, [f"{name:<29} {text}" for name, text in rows])
        return terminal_lines([*lines, *labelled("note", self.notes)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = []
        for group, shown in self._shown_groups().items():
            for index, (name, text) in enumerate(shown):
                head = f'<th rowspan="{len(shown)}" scope="rowgroup">{escaped(group)}</th>' if index == 0 else ""
                rows.append(f"<tr>{head}<td>{escaped(name)}</td><td>{escaped(text)}</td></tr>")
        notes = "".join(f"<li>{escaped(note)}</li>" for note in self.notes)
        table = f"<table><caption>{escaped(self.title)}</caption><tbody>{''.join(rows)}</tbody></table>"
        return f"{table}<ul>{notes}</ul>" if notes else table

    @property
    def title(self) -> str:
        """Latents, sites, model and ablation, in a line."""
        sites = self.hook_name or "a site not recorded"
        if self.hook_name_out != self.hook_name:
            sites += f" -> {self.hook_name_out}"
        of_model = f" of {self.model_name}" if self.model_name else ""
        ablated = f" ({self.ablation} ablation)" if self.ablation else ""
        return f"{self.d_sae:,} latents at {sites}{of_model}{ablated}"

    def _shown_groups(self) -> dict[str, list[tuple[str, str]]]:
        """Name and text of what was measured, by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for group, names in shown_in_groups(Report).items():
            groups[group] = _rows(self, names, self.intervals)
            if group == "reconstruction" and self.fve_per_site:
                groups["fve per site"] = [(name, shown(value)) for name, value in self.fve_per_site.items()]
            if group == "language model":
                groups |= _others(self.ablations, self.intervals, self.ablation)
                for key, losses in (self.models or {}).items():
                    kinds = (PredictionFigures, PatternFigures)
                    of_model = [name for kind in kinds for each in shown_in_groups(kind).values() for name in each]
                    groups[f"model {key}"] = _rows(losses, of_model, losses.intervals)
        return groups


def _others(
    ablations: Mapping[str, AblationLosses] | None, intervals: Mapping[str, Interval], main: Ablation | None
) -> dict[str, list[tuple[str, str]]]:
    """The rows of ablations whose figures are not among the flat ones."""
    return {
        f"{name} ablation": _rows(losses, list(OF_ABLATION), intervals, f"ablations/{name}/")
        for name, losses in (ablations or {}).items()
        if name != main
    }


def _rows(
    of: AblationLosses | ModelLosses | Report,
    names: Sequence[str],
    intervals: Mapping[str, Interval],
    prefix: str = "",
) -> list[tuple[str, str]]:
    """Name and text of what was measured; intervals by name with ``prefix``."""
    values = {name: getattr(of, name) for name in names}
    return [(name, _text(value, intervals.get(prefix + name))) for name, value in values.items() if value is not None]


def _text(value: Any, interval: Interval | None) -> str:
    if isinstance(value, Mapping):  # quantiles
        return ", ".join(f"{each} ({name})" for name, each in value.items())
    return between(value, interval)


def labelled(label: str, texts: Sequence[str]) -> list[str]:
    """Indented lines, the first with ``label`` in front."""
    return [f"  {label if index == 0 else '':<15} {text}" for index, text in enumerate(texts)]


def shown(value: float | int | str) -> str:
    """A figure as reports print it."""
    if isinstance(value, float):
        if math.isnan(value):
            return "undefined"
        return f"{value + 0.0:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def between(value: float | int | str, interval: Interval | None) -> str:
    """A figure and, in brackets, the ends of its interval."""
    return shown(value) if interval is None else f"{shown(value)}  [{shown(interval[0])}, {shown(interval[1])}]"


def plain_value(value: Any) -> Any:
    """A field as JSON: what is not finite becomes None, also inside mappings, sequences and dataclasses."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return plain_value(asdict(value))
    if isinstance(value, Mapping):
        return {name: plain_value(each) for name, each in value.items()}
    if isinstance(value, Tensor):
        return [plain_value(each) for each in value.tolist()]
    return [plain_value(each) for each in value] if isinstance(value, tuple) else value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ablations and intervals from their JSON."""
    nested: dict[str, Any] = {}
    if values.get("ablations") is not None:
        nested["ablations"] = {
            name: made_of(AblationLosses, _numbers(AblationLosses, each), f"ablation {name}")
            for name, each in values["ablations"].items()
        }
    return nested | {"intervals": intervals_of(values)}


def intervals_of(values: Mapping[str, Any]) -> dict[str, Interval]:
    """Intervals from the JSON of a report, in which older ones have none."""
    return {name: (_number(low), _number(high)) for name, (low, high) in values.get("intervals", {}).items()}


def _numbers(kind: type[AblationLosses | ModelLosses], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of ``kind`` from their JSON: None is NaN again but in those that are not always measured, and so is
    what a file does not have that was written before the figure was there."""
    rows = figures_of(kind)
    older = {name: math.nan for name, row in rows.items() if row.needs == "predictions" and row.bounds is not None}
    optional = {name for name, row in rows.items() if row.needs == "patterns"}
    known = {name: value for name, value in plain.items() if name not in _NESTED}
    return older | {name: value if name in optional else _number(value) for name, value in known.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
