"""What a row of the table of figures says; the rows are in ``figures.py``. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from monosema.metrics.reconstruction import ReconstructionSums
    from monosema.metrics.sparsity import SparsitySums

Range = tuple[float, float]
"""The least and the greatest value of a figure: its interval never reaches beyond them."""
Interval = tuple[float, float]
"""A 95 % confidence interval by document (``metrics.jackknife_interval``)."""
Needs = Literal["activations", "predictions", "patterns", "weights", "text"]
"""What a figure is measured on: rows of activations, a model's predictions, its attention patterns, the dictionary's
weights, or nothing but the text."""

ANY: Range = (-math.inf, math.inf)
AT_LEAST_0: Range = (0.0, math.inf)
AT_MOST_1: Range = (-math.inf, 1.0)
COSINE: Range = (-1.0, 1.0)
SHARE: Range = (0.0, 1.0)

USUAL_RANK = 50
"""The rank of what says none."""


@dataclass(frozen=True)
class Measured:
    """What the figures of activations are made of."""

    reconstruction: ReconstructionSums
    """Of the rows measured."""
    all_rows: ReconstructionSums | None
    """Of these and of the rows left out for their norm; None where none was."""
    sparsity: SparsitySums
    """Of the latents of the rows measured."""
    terms: Mapping[str, float]
    """Sums over rows by term, with ``n``, the number of rows whose documents are known."""


@dataclass(frozen=True)
class Runs:
    """Means over predictions (or over queries, of attention patterns), by term."""

    clean: Mapping[str, float]
    """Of the model itself."""
    spliced: Mapping[str, float]
    """With the reconstruction in the site's place."""
    ablated: Mapping[str, float]
    """With the site ablated."""


LeftOut = Mapping[str, "Tensor"]
"""By term, the sums over all documents but one group, a value for each group."""


@dataclass(frozen=True)
class Column:
    """A figure's column of the page's table."""

    group: str
    """The columns it stands among."""
    heading: str
    """Its heading; of an ablation, ``{ablation}`` is its name."""
    tip: str
    """What it means, in a line."""
    rank: int = USUAL_RANK
    """Its place in the group: lower ones first, equal ones in the table's order."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A row of the table."""

    label: str = ""
    """What it is called in words."""
    formula: str = ""
    """Its definition, as ``docs/metrics.md`` has it."""
    values: str = ""
    """The values it can have, as ``docs/metrics.md`` says it."""
    better: Literal["highest", "lowest"] | None = None
    """Which value is the best one; None where neither end is."""
    group: str = ""
    """Under which heading a report shows it; it is not shown without one."""
    rank: int = USUAL_RANK
    """Its place there: lower ones first, equal ones in the table's order."""
    needs: Needs = "activations"
    """What it is measured on."""
    bounds: Range | None = None
    """What its interval is cut to; None where it has no interval."""
    is_at_most_d_sae: bool = False
    """Whether it counts latents, so that its interval ends at their number."""
    of: Callable[[Any], Any] | None = None
    """Computes it from ``Measured`` or ``Runs``; None where it is known otherwise or is that of an ablation."""
    left_out: Callable[[LeftOut], Tensor] | None = None
    """Of activations: computes it without each group of documents, for its interval."""
    flat: str = ""
    """Of an ablation: the name of the report's field for the first ablation."""
    is_logged: bool = False
    """Whether it is logged as ``heldout/NAME`` while training."""
    column: Column | None = None
    """Its column of the page; None where it has none."""

    def bounds_of(self, d_sae: int) -> Range:
        """What its interval is cut to in a dictionary of ``d_sae`` latents."""
        low, high = self.bounds or ANY
        return (low, float(d_sae)) if self.is_at_most_d_sae else (low, high)


def figure(default: Any = MISSING, **row: Any) -> Any:
    """A dataclass field that is the figure ``Figure(**row)``; required without a ``default``."""
    return field(default=default, metadata={"figure": Figure(**row)})


def figures_of(kind: type) -> dict[str, Figure]:
    """The rows among the fields of the dataclass ``kind``, by name and in the fields' order."""
    return {each.name: each.metadata["figure"] for each in fields(kind) if "figure" in each.metadata}


def shown_in_groups(kind: type) -> dict[str, tuple[str, ...]]:
    """The figures of ``kind`` that a report shows: by group, their names in order."""
    shown: dict[str, list[str]] = {group: [] for group in GROUPS}
    rows = figures_of(kind)
    for name in sorted(rows, key=lambda name: rows[name].rank):
        if rows[name].group:
            shown[rows[name].group].append(name)
    return {group: tuple(names) for group, names in shown.items() if names}


GROUPS = ("reconstruction", "sparsity", "language model", "attention", "weights", "data")
"""The headings of a report, in order."""
