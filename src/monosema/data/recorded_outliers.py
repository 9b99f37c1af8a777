"""Which rows are left out where a dictionary is evaluated or read: those that its training left out.

The rule is recorded in the dictionary: how many times the median norm, and the median at each of its sites. One that
records no median gets that of the first rows evaluated, whatever their batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import FileError
from monosema.core.words import counted
from monosema.data.outliers import MEDIAN_ROWS, NormRule, check_multiple, recorded_rule

OutlierMultiple = float | None | Literal["recorded"]
"""Of the median norm, beyond which a row is left out; None for no row, by default what the dictionary records."""

Batch = TypeVar("Batch")


def rule_for(coder: Dictionary, multiple: OutlierMultiple = "recorded") -> NormRule | None:
    """The rule for rows of ``coder``; None where no row is left out, without medians where none are recorded.

    Raises ``ConfigError`` for a multiple below 1, ``FileError`` where what the dictionary records is damaged.
    """
    if multiple == "recorded":
        rule = recorded_rule(coder.metadata)
    else:
        check_multiple(multiple)
        known = recorded_rule({**coder.metadata, "outlier_norm_multiple": multiple})
        rule = None if multiple is None else known
    if rule is not None and rule.medians is not None and not _fits(rule, coder):
        raise FileError(
            f"the dictionary records median norms of sites {[width for _, width in rule.sites]} wide, it reads "
            f"{counted(coder.d_in, 'column')} and writes {coder.d_out}; its metadata are damaged: evaluate it with "
            "outlier_norm_multiple=None"
        )
    return rule


def estimated(rule: NormRule, coder: Dictionary, x: Tensor, target: Tensor) -> NormRule:
    """``rule`` with the median norms of rows ``x [n, d_in]`` and, where it is another tensor, ``target [n, d_out]``."""
    widths = [*coder.read_widths, *(() if target is x else coder.write_widths)]
    return rule.estimated([("", width) for width in widths], [joined(x, target)])


def joined(x: Tensor, target: Tensor) -> Tensor:
    """The rows with all their sites side by side: ``x`` alone where it is the target as well."""
    return x if target is x else torch.cat([x, target.to(x.device)], 1)


def first_rows(batches: Iterator[Batch], rows_of: Callable[[Batch], Tensor]) -> tuple[Tensor | None, Iterator[Batch]]:
    """The first 4,096 rows of ``batches``, and an iterator that gives all of the batches; None where there are none."""
    read: list[Batch] = []
    rows: list[Tensor] = []
    while sum(map(len, rows)) < MEDIAN_ROWS and (batch := next(batches, None)) is not None:
        read.append(batch)
        part = rows_of(batch)
        if rows and part.shape[1:] != rows[0].shape[1:]:
            break  # whoever measures it says what is wrong
        rows.append(part.to(rows[0].device) if rows else part)
    return torch.cat(rows)[:MEDIAN_ROWS] if rows else None, itertools.chain(read, batches)


def _fits(rule: NormRule, coder: Dictionary) -> bool:
    """Whether the recorded widths are those of what the coder reads, or of that and of what it writes."""
    ends = list(itertools.accumulate(width for _, width in rule.sites))
    return coder.d_in in ends and ends[-1] in (coder.d_in, coder.d_in + coder.d_out)
