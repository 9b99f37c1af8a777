"""What an evaluation found: one frozen record, readable in a terminal, a notebook and a JSON file."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor

from monosema.core.config import check_types
from monosema.core.errors import FileError, first_line
from monosema.core.files import read_json

Ablation = Literal["zero", "mean"]
"""What the site becomes in the ablated run: zero, or its mean over the tokens run ablated."""

Overlap = Literal["none", "same tokens", "unknown"]
"""Whether the tokens evaluated were trained on, from the fingerprints both sides recorded."""

_LOSSES = ("ce_loss_score", "ce_clean", "ce_spliced", "ce_ablated", "kl_score", "kl", "kl_ablated")

_GROUPS: dict[str, tuple[str, ...]] = {
    "reconstruction": ("fve", "mse", "cosine", "norm_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l0_std", "l1", "dead_fraction", "n_alive", "d_sae"),
    "language model": _LOSSES,
    "data": ("split", "n_tokens", "n_predicted_tokens", "n_special_positions", "tokens_fingerprint", "overlap"),
}


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
    n_predicted_tokens: int
    """Tokens over which cross-entropy and KL are averaged."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The metrics of one coder on one set of tokens; ``monosema.metrics`` defines each.

    A value is NaN where its definition divides by zero, and None where it was not measured; ``notes`` says why.
    """

    fve: float
    """Fraction of variance explained: 1 is perfect, 0 is predicting the mean."""
    mse: float
    """Squared error per token, summed over dimensions."""
    cosine: float
    """Mean cosine of activation and reconstruction."""
    norm_ratio: float
    """Mean of the reconstruction's norm over the activation's; below 1 is shrinkage."""
    relative_reconstruction_bias: float
    """``E ||x_hat||^2 / E <x, x_hat>``: 1 is unbiased."""
    l0: float
    """Mean number of latents that fire on a token."""
    l0_std: float
    """Its standard deviation over tokens."""
    l1: float
    """Mean over tokens of the sum of absolute latent values."""
    dead_fraction: float
    """Fraction of latents that fired on no token."""
    dead_fraction_reliable: bool
    """Whether there were enough tokens (100,000) to call a silent latent dead."""
    n_alive: int
    """Latents that fired on at least one token."""
    d_sae: int
    """Latents in all."""
    n_tokens: int
    """Tokens measured for everything above: positions that are not special."""
    n_special_positions: int | None = None
    """Special positions left out."""
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
    n_predicted_tokens: int | None = None
    """Tokens over which cross-entropy and KL are averaged."""
    fve_per_site: Mapping[str, float] | None = None
    """By the name of each site written, where there are several: ``fve`` there alone."""
    models: Mapping[str, ModelLosses] | None = None
    """By model, where the coder writes sites of several: each run spliced and ablated at its own sites. The losses
    above are then None."""
    ablation: Ablation | None = None
    """What the site became in the ablated run."""
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

    def to_dict(self, *, per_latent: bool = False) -> dict[str, Any]:
        """The fields as JSON values: NaN becomes None; ``firing_density`` is a list, and only there if asked for."""
        plain: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "firing_density":
                if per_latent:
                    plain[each.name] = None if value is None else value.tolist()
                continue
            plain[each.name] = plain_value(value)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """The report that ``to_dict`` wrote, without ``firing_density``.

        None becomes NaN again in fields that are always measured, and stays None in the others.
        """
        values: dict[str, Any] = {}
        for each in fields(cls):
            if each.name in plain and each.name != "firing_density":
                value = plain[each.name]
                values[each.name] = math.nan if value is None and each.default is MISSING else value
        if values.get("fve_per_site") is not None:
            values["fve_per_site"] = {name: _number(value) for name, value in values["fve_per_site"].items()}
        if values.get("models") is not None:
            values["models"] = {
                key: ModelLosses(**{name: _number(value) for name, value in losses.items()})  # type: ignore[arg-type]
                for key, losses in values["models"].items()
            }
        return cls(**values | {"notes": tuple(plain.get("notes", ()))})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """The report whose ``to_dict`` was written as JSON to ``path``; ``FileError`` where it is damaged."""
        plain = read_json(path)
        try:
            report = cls.from_dict(plain)
            for each in (report, *(report.models or {}).values()):
                check_types(each)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} is damaged: {type(error).__name__}: {first_line(error)}") from error
        return report

    def __str__(self) -> str:
        lines = [self._title()]
        for group, rows in self._shown_groups().items():
            lines += labelled(group, [f"{name:<29} {text}" for name, text in rows])
        return "\n".join([*lines, *labelled("note", self.notes)])

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = []
        for group, shown in self._shown_groups().items():
            for index, (name, text) in enumerate(shown):
                head = f'<th rowspan="{len(shown)}" scope="rowgroup">{html.escape(group)}</th>' if index == 0 else ""
                rows.append(f"<tr>{head}<td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>")
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = f"<table><caption>{html.escape(self._title())}</caption><tbody>{''.join(rows)}</tbody></table>"
        return f"{table}<ul>{notes}</ul>" if notes else table

    def _title(self) -> str:
        sites = self.hook_name or "a site not recorded"
        if self.hook_name_out != self.hook_name:
            sites += f" -> {self.hook_name_out}"
        of_model = f" of {self.model_name}" if self.model_name else ""
        ablated = f" ({self.ablation} ablation)" if self.ablation else ""
        return f"{self.d_sae:,} latents at {sites}{of_model}{ablated}"

    def _shown_groups(self) -> dict[str, list[tuple[str, str]]]:
        """Name and text of what was measured, by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for group, names in _GROUPS.items():
            groups[group] = [(name, shown(getattr(self, name))) for name in names if getattr(self, name) is not None]
            if group == "reconstruction" and self.fve_per_site:
                groups["fve per site"] = [(name, shown(value)) for name, value in self.fve_per_site.items()]
            if group == "language model":
                for key, losses in (self.models or {}).items():
                    names = (*_LOSSES, "n_predicted_tokens")
                    groups[f"model {key}"] = [(name, shown(getattr(losses, name))) for name in names]
        return groups


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


def plain_value(value: Any) -> Any:
    """A field as JSON: what is not finite becomes None, also inside mappings, sequences and dataclasses."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return plain_value(asdict(value))
    if isinstance(value, Mapping):
        return {name: plain_value(each) for name, each in value.items()}
    return [plain_value(each) for each in value] if isinstance(value, tuple) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
