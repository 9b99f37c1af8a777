"""What a replacement of MLPs found: one frozen record, readable in a terminal, a notebook and a JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from monosema.core.plain import texts_in
from monosema.core.printable import escaped, terminal_lines
from monosema.evaluation.report import Overlap, between, intervals_of, labelled, plain_value, shown
from monosema.metrics.figure import Interval

_GROUPS = {
    "language model": ("replacement_score", "ce_clean", "ce_replaced", "ce_zero", "kl", "kl_zero", "top1_agreement"),
    "sparsity": ("l0",),
    "data": ("split", "n_tokens", "n_predicted_tokens", "n_special_positions", "tokens_fingerprint", "overlap"),
}


@dataclass(frozen=True, kw_only=True)
class ReplacedLayer:
    """One site replaced, measured in the replaced run."""

    hook_name: str
    """Site read by the latents of this layer."""
    hook_name_out: str
    """Site replaced."""
    d_sae: int
    """Latents of this layer."""
    l0: float
    """Mean number of them that fire on a token."""
    fve: float
    """``1 - sum ||x - x_hat||^2 / sum ||x - E x||^2``: x the site in the clean run, x_hat what replaced it."""


@dataclass(frozen=True, kw_only=True)
class ReplacementReport:
    """How well a language model predicts text with dictionaries in place of its MLPs, all at once.

    Three runs on the same tokens: clean; replaced, where each coder reads the run in which the sites before it are
    already replaced; and zero, where the same sites are zero. Losses are nats per predicted token.
    """

    replacement_score: float
    """``(ce_zero - ce_replaced) / (ce_zero - ce_clean)``: 1 costs nothing, 0 is as bad as no MLPs at all."""
    ce_clean: float
    """Cross-entropy of the model itself."""
    ce_replaced: float
    """With the coders in place."""
    ce_zero: float
    """With zero in place of the same sites."""
    kl: float
    """``KL(clean || replaced)``."""
    kl_zero: float
    """``KL(clean || zero)``."""
    top1_agreement: float
    """Share of the predictions whose most probable token is the clean run's, with the coders in place."""
    l0: float
    """Latents that fire on a token, of all layers together."""
    layers: tuple[ReplacedLayer, ...]
    """The sites replaced."""
    n_tokens: int
    """Tokens measured: positions that are not special."""
    n_special_positions: int
    """Special positions, where the model's own MLPs stay."""
    n_predicted_tokens: int
    """Tokens over which the losses are averaged."""
    model_name: str
    """The model."""
    split: str
    """Which tokens: the split's name, or ``"contexts"`` for ids given."""
    tokens_fingerprint: str
    """sha256 of that split."""
    overlap: Overlap
    """Whether a coder was trained on these tokens."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """By field, of the losses: 95 % confidence intervals by document."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; NaN becomes None."""
        return {each.name: plain_value(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ReplacementReport:
        """The report that ``to_dict`` wrote."""
        layers = tuple(ReplacedLayer(**_with_nan(layer)) for layer in plain["layers"])
        long = {"layers": layers, "notes": texts_in(plain, "notes", "the report"), "intervals": intervals_of(plain)}
        return cls(**{"top1_agreement": math.nan} | _with_nan(plain) | long)

    def __str__(self) -> str:
        lines = [self._title()]
        for group, names in _GROUPS.items():
            lines += labelled(group, [f"{name:<29} {self._shown(name)}" for name in names])
            if group == "sparsity":
                width = max(len(layer.hook_name_out) for layer in self.layers)
                lines += labelled(
                    "layers", [f"{layer.hook_name_out:<{width}}  {_brief(layer)}" for layer in self.layers]
                )
        return terminal_lines([*lines, *labelled("note", self.notes)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        rows = [
            f"<tr><td>{name}</td><td>{escaped(self._shown(name))}</td></tr>"
            for names in _GROUPS.values()
            for name in names
        ]
        heads = "".join(f'<th scope="col">{each.name}</th>' for each in fields(ReplacedLayer))
        layers = [
            "".join(f"<td>{escaped(shown(getattr(layer, each.name)))}</td>" for each in fields(ReplacedLayer))
            for layer in self.layers
        ]
        notes = "".join(f"<li>{escaped(note)}</li>" for note in self.notes)
        return (
            f"<table><caption>{escaped(self._title())}</caption><tbody>{''.join(rows)}</tbody></table>"
            f"<table><thead><tr>{heads}</tr></thead><tbody>"
            + "".join(f"<tr>{layer}</tr>" for layer in layers)
            + f"</tbody></table><ul>{notes}</ul>"
        )

    def _shown(self, name: str) -> str:
        return between(getattr(self, name), self.intervals.get(name))

    def _title(self) -> str:
        return f"{len(self.layers)} sites of {self.model_name} replaced at once (zero ablation)"


def _brief(layer: ReplacedLayer) -> str:
    return f"fve {shown(layer.fve)}  l0 {shown(layer.l0)}  of {layer.d_sae:,} latents that read {layer.hook_name}"


def _with_nan(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in plain.items()}
