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
from monosema.core.words import counted
from monosema.evaluation.latent_table import LatentTable

VERSION = 1
"""Of the JSON that ``Report.to_dict`` gives; fields are added without a new one."""

Ablation = Literal["zero", "mean"]
"""What the site becomes in an ablated run: zero, or its mean over the tokens run ablated."""

Interval = tuple[float, float]
"""A 95 % confidence interval by document (``metrics.jackknife_interval``)."""

Overlap = Literal["none", "same tokens", "unknown"]
"""Whether the tokens evaluated were trained on, from the fingerprints both sides recorded."""

_LOSSES = ("ce_loss_score", "ce_clean", "ce_spliced", "ce_ablated", "kl_score", "kl", "kl_ablated", "top1_agreement")

_PATTERNS = ("pattern_kl_score", "pattern_kl", "pattern_kl_ablated", "n_pattern_queries")

_NESTED = ("ablations", "intervals")

_LONG = ("firing_density", "fve_per_dimension", "pattern_kl_per_position", "latents")
"""Fields with a value for each latent, dimension or position."""

_GROUPS: dict[str, tuple[str, ...]] = {
    "reconstruction": (
        "fve",
        "fve_all_rows",
        "fve_centred",
        "fve_per_token_mean",
        "mse",
        "cosine",
        "norm_ratio",
        "relative_reconstruction_bias",
    ),
    "sparsity": (
        "l0",
        "l0_std",
        "l1",
        "dead_fraction",
        "n_alive",
        "d_sae",
        "share_over_1_percent",
        "share_over_10_percent",
    ),
    "language model": _LOSSES,
    "attention": _PATTERNS,
    "weights": ("encoder_decoder_cosine", "max_decoder_cosine", "max_encoder_cosine", "encoder_norm", "decoder_norm"),
    "data": (
        "split",
        "n_tokens",
        "n_documents",
        "n_predicted_tokens",
        "n_special_positions",
        "n_outlier_rows",
        "tokens_fingerprint",
        "overlap",
    ),
}


@dataclass(frozen=True, kw_only=True)
class AblationLosses:
    """What the predictions lose where the sites are ablated in one way; averages as in ``ModelLosses``."""

    ce: float
    """Cross-entropy of the ablated run."""
    ce_loss_score: float
    """``(ce - ce_spliced) / (ce - ce_clean)``."""
    kl: float
    """``KL(clean || ablated)``."""
    kl_score: float
    """``(kl - kl of the spliced run) / kl``."""
    top1_agreement: float
    """Share of the predictions whose most probable token is the clean run's."""
    pattern_kl: float | None = None
    """``KL(clean || ablated)`` of attention patterns, as in ``Report``."""
    pattern_kl_score: float | None = None
    """``(pattern_kl - that of the spliced run) / pattern_kl``."""


@dataclass(frozen=True, kw_only=True)
class ModelLosses:
    """What one model's predictions lose when its sites are replaced; averages over ``n_predicted_tokens``."""

    ce_clean: float
    """Cross-entropy of the model itself, nats per predicted token."""
    ce_spliced: float
    """The same with the reconstruction in the sites' place."""
    ce_ablated: float
    """The same with the sites ablated."""
    ce_loss_score: float
    """``(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)``."""
    kl: float
    """``KL(clean || spliced)``, nats per predicted token."""
    kl_ablated: float
    """``KL(clean || ablated)``, nats per predicted token."""
    kl_score: float
    """``(kl_ablated - kl) / kl_ablated``."""
    top1_agreement: float
    """Share of the predictions whose most probable token is the clean run's, with the reconstruction in place."""
    n_predicted_tokens: int
    """Tokens over which cross-entropy and KL are averaged."""
    ablations: Mapping[str, AblationLosses]
    """By ablation, each that was run; the fields above are those of the first."""
    intervals: Mapping[str, Interval]
    """By field, and by ``ablations/NAME/FIELD``: 95 % intervals by document."""
    pattern_kl: float | None = None
    """``KL(clean || spliced)`` of attention patterns, as in ``Report``."""
    pattern_kl_ablated: float | None = None
    """``KL(clean || ablated)`` of attention patterns."""
    pattern_kl_score: float | None = None
    """``(pattern_kl_ablated - pattern_kl) / pattern_kl_ablated``."""
    n_pattern_queries: int | None = None
    """Queries over which these are averaged."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The metrics of one coder on one set of tokens; ``monosema.metrics`` defines each.

    A value is NaN where its definition divides by zero, and None where it was not measured; ``notes`` says why.
    ``intervals`` has the 95 % confidence interval by document of each figure that depends on text.
    """

    fve: float
    """Fraction of variance explained: 1 is perfect, 0 is predicting the mean."""
    fvu: float = math.nan
    """Fraction of variance unexplained, ``1 - fve``."""
    fve_centred: float = math.nan
    """``fve`` of the errors less their mean: what it would be without a constant offset."""
    fve_per_token_mean: float = math.nan
    """Mean over tokens of ``1 - ||x - x_hat||^2 / ||x - mean||^2``: tokens near the mean weigh as much as others. NaN
    where the mean is not known beforehand: it is that of the mean ablation."""
    mse: float
    """Squared error per token, summed over dimensions."""
    cosine: float
    """Mean cosine of activation and reconstruction."""
    norm_in: float = math.nan
    """Mean length of the activation."""
    norm_out: float = math.nan
    """Mean length of the reconstruction."""
    norm_ratio: float
    """Mean of the reconstruction's norm over the activation's; below 1 is shrinkage."""
    relative_reconstruction_bias: float
    """``E ||x_hat||^2 / E <x, x_hat>``: 1 is unbiased."""
    l0: float
    """Mean number of latents that fire on a token."""
    l0_std: float
    """Its standard deviation over tokens."""
    l0_quantiles: Mapping[str, int] | None = None
    """Of the number of latents that fire on a token: 0, 5, 25, 50, 75, 95 and 100 % of the tokens have at most so
    many."""
    l1: float
    """Mean over tokens of the sum of absolute latent values."""
    dead_fraction: float
    """Fraction of latents that fired on no token."""
    dead_fraction_reliable: bool
    """Whether there were enough tokens (100,000) to call a silent latent dead."""
    share_over_1_percent: float = math.nan
    """Fraction of latents that fire on more than 1 % of the tokens."""
    share_over_10_percent: float = math.nan
    """Fraction of latents that fire on more than 10 % of the tokens."""
    log10_density_histogram: tuple[int, ...] | None = None
    """Latents by ``log10(firing density + 1e-10)``, 20 equal bins from -10 to 0."""
    n_alive: int
    """Latents that fired on at least one token."""
    d_sae: int
    """Latents in all."""
    n_tokens: int
    """Tokens measured for everything above: positions that are not special."""
    n_documents: int | None = None
    """Documents these tokens are from; None where that is not known."""
    n_special_positions: int | None = None
    """Special positions left out."""
    fve_all_rows: float | None = None
    """``fve`` of all rows, those left out for their norm as well; None where none was left out."""
    n_outlier_rows: int | None = None
    """Rows left out of everything else because their norm is more than ``outlier_norm_multiple`` times the median; None
    where rows of any norm are measured."""
    outlier_norm_multiple: float | None = None
    """That multiple."""
    ce_clean: float | None = None
    """Cross-entropy of the model itself, nats per predicted token."""
    ce_spliced: float | None = None
    """The same with the reconstruction in the site's place."""
    ce_ablated: float | None = None
    """The same with the site ablated."""
    ce_loss_score: float | None = None
    """``(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)``: 1 is no loss, 0 is as bad as ablation."""
    kl: float | None = None
    """``KL(clean || spliced)``, nats per predicted token."""
    kl_ablated: float | None = None
    """``KL(clean || ablated)``, nats per predicted token."""
    kl_score: float | None = None
    """``(kl_ablated - kl) / kl_ablated``."""
    top1_agreement: float | None = None
    """Share of the predictions whose most probable token is the clean run's."""
    n_predicted_tokens: int | None = None
    """Tokens over which cross-entropy and KL are averaged."""
    ablations: Mapping[str, AblationLosses] | None = None
    """By ablation, each that was run; ``ce_ablated`` and so on above are those of ``ablation``."""
    pattern_kl: float | None = None
    """``KL(clean || spliced)`` of the attention patterns that the site written decides: nats per query, the mean over
    the heads concerned. Where the site is ``attn.hook_q``, ``attn.hook_k`` or one head of either; no other is
    measured."""
    pattern_kl_ablated: float | None = None
    """``KL(clean || ablated)`` of these patterns."""
    pattern_kl_score: float | None = None
    """``(pattern_kl_ablated - pattern_kl) / pattern_kl_ablated``: 1 is no change, 0 is as bad as ablation."""
    n_pattern_queries: int | None = None
    """Queries over which they are averaged: positions that are not special and have keys to choose among."""
    encoder_decoder_cosine: float | None = None
    """Mean over latents of the cosine of encoder column and decoder row; SAEs only."""
    max_decoder_cosine: float | None = None
    """Mean over latents of the largest cosine of its decoder row with another's."""
    max_encoder_cosine: float | None = None
    """Mean over latents of the largest cosine of its encoder column with another's."""
    encoder_norm: float | None = None
    """Mean length of the encoder columns."""
    decoder_norm: float | None = None
    """Mean length of the decoder rows."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """By field, and by ``ablations/NAME/FIELD``: 95 % confidence intervals by document."""
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
    split: str = ""
    """Which tokens: the split's name (``"heldout"``), ``"contexts"`` for ids given, ``"activations"`` without text."""
    tokens_fingerprint: str | None = None
    """sha256 of that split."""
    overlap: Overlap = "unknown"
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
        return f"{counted(self.d_sae, 'latent')} at {sites}{of_model}{ablated}"

    def _shown_groups(self) -> dict[str, list[tuple[str, str]]]:
        """Name and text of what was measured, by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for group, names in _GROUPS.items():
            groups[group] = [(name, self._shown(name)) for name in names if getattr(self, name) is not None]
            if group == "reconstruction" and self.fve_per_site:
                groups["fve per site"] = [(name, shown(value)) for name, value in self.fve_per_site.items()]
            if group == "sparsity" and self.l0_quantiles:
                quantiles = ", ".join(f"{count} ({name})" for name, count in self.l0_quantiles.items())
                groups[group].insert(2, ("l0_quantiles", quantiles))
            if group == "language model":
                groups |= _others(self.ablations, self.intervals, self.ablation)
                for key, losses in (self.models or {}).items():
                    names = (*_LOSSES, "n_predicted_tokens", *_PATTERNS)
                    groups[f"model {key}"] = _rows(losses, names, losses.intervals)
        return groups

    def _shown(self, name: str) -> str:
        return between(getattr(self, name), self.intervals.get(name))


def _others(
    ablations: Mapping[str, AblationLosses] | None, intervals: Mapping[str, Interval], main: Ablation | None
) -> dict[str, list[tuple[str, str]]]:
    """The rows of ablations whose figures are not among the flat ones."""
    return {
        f"{name} ablation": _rows(losses, [each.name for each in fields(losses)], intervals, f"ablations/{name}/")
        for name, losses in (ablations or {}).items()
        if name != main
    }


def _rows(
    losses: AblationLosses | ModelLosses, names: Sequence[str], intervals: Mapping[str, Interval], prefix: str = ""
) -> list[tuple[str, str]]:
    """Name and text of what was measured; intervals by name with ``prefix``."""
    values = {name: getattr(losses, name) for name in names}
    return [(name, between(value, intervals.get(prefix + name))) for name, value in values.items() if value is not None]


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
    """The figures of ``kind`` from their JSON: None is NaN again but in those that are not always measured."""
    optional = {each.name for each in fields(kind) if each.default is None}
    return {name: value if name in optional else _number(value) for name, value in plain.items() if name not in _NESTED}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
