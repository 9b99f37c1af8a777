"""Rows of activations, from whatever holds them, through coders: everything that needs no model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, ShapeError
from monosema.data.outliers import NormRule
from monosema.data.recorded_outliers import estimated, first_rows
from monosema.evaluation.findings import Findings
from monosema.evaluation.measure import measure_rows

ROWS_PER_STEP = 4096


def measure_activations(
    coders: Sequence[Dictionary],
    activations: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    n_tokens: int | None,
    batch_size: int | None = None,
    n_batches: int | None = None,
    rules: Sequence[NormRule | None] | None = None,
) -> list[Findings]:
    """What is found of each coder on rows of activations, in float64.

    Rows are ``[n, d_in]``; where a coder writes another site than it reads, ``d_in + d_out``: both sites side
    by side, the one read first. At most ``n_tokens`` rows are used, and ``n_batches`` tensors. ``rules`` say of each
    coder which rows are left out; without them, none is. An activation stream is given back in the state it came in.
    """
    found = [Findings(coder, coder.write_widths, 0) for coder in coders]
    known = [None] * len(coders) if rules is None else list(rules)
    with unmoved(activations):
        batches = at_most(row_batches(activations, batch_size or ROWS_PER_STEP, n_batches), n_tokens)
        if any(rule is not None and rule.medians is None for rule in known):
            first, batches = first_rows(batches, lambda rows: rows)
            known = [_with_medians(rule, coder, first) for rule, coder in zip(known, coders, strict=True)]
        for index, rows in enumerate(batches):
            for coder, own, rule in zip(coders, found, known, strict=True):
                x, target = split_row(coder, rows, index)
                where = f"{coder.hook_name or 'activations'}, batch {index}"
                own.add_rows(measure_rows(coder, x, target, coder.write_widths, where, rule))
    return found


def at_most(batches: Iterator[Tensor], n_rows: int | None) -> Iterator[Tensor]:
    """The first ``n_rows`` rows of ``batches``; no batch is asked for beyond them."""
    left = n_rows
    for rows in batches:
        yield rows if left is None else rows[:left]
        if left is not None:
            left -= len(rows)
            if left <= 0:
                return


def _with_medians(rule: NormRule | None, coder: Dictionary, first: Tensor | None) -> NormRule | None:
    if rule is None or rule.medians is not None or first is None:
        return rule
    return estimated(rule, coder, *split_row(coder, first, 0))


@contextlib.contextmanager
def unmoved(source: Any) -> Iterator[None]:
    """Reading a stream that has a state moves it on; put it back, so that training sees what it would have seen."""
    if not (hasattr(source, "state_dict") and hasattr(source, "load_state_dict")):
        yield
        return
    state = source.state_dict()
    try:
        yield
    finally:
        source.load_state_dict(state)


def row_batches(
    activations: Tensor | np.ndarray | Iterable[Any], batch_size: int, n_batches: int | None = None
) -> Iterator[Tensor]:
    """Rows ``[at most batch_size, d]`` of the first ``n_batches`` tensors (all by default); of a loader's tuples the
    first entry. Mapped files are read in parts."""
    if isinstance(activations, str):
        raise ConfigError("activations must be a tensor, an array or an iterable of those, got a string")
    listed = [activations] if isinstance(activations, Tensor | np.ndarray) else activations
    for each in itertools.islice(listed, n_batches):
        rows = each[0] if isinstance(each, tuple | list) else each
        if rows.ndim < 2:
            raise ShapeError(
                f"activations must be a tensor [..., d] or an iterable of such tensors, got one of {list(rows.shape)}"
            )
        rows = rows.reshape(-1, rows.shape[-1])
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def split_row(coder: Dictionary, rows: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """What is read and what is to be reconstructed, from rows ``[n, d]``."""
    width, both = rows.shape[1], coder.d_in + coder.d_out
    if width == coder.d_in and coder.reconstructs:
        return rows, rows
    if width == both and not (coder.reconstructs and coder.reads):
        return rows[:, : coder.d_in], rows[:, coder.d_in :]
    if coder.reconstructs:
        expected = f"[rows, {coder.d_in}] (d_in)"
    else:
        expected = f"[rows, {both}] (d_in + d_out: what is read and what is written, side by side)"
    raise ShapeError(
        f"the coder (hook {coder.hook_name or 'not recorded'!r}) needs activations {expected}, got [rows, {width}] "
        f"in batch {index}"
    )
