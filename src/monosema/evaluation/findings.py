"""What an evaluation sums up of one dictionary, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from monosema.coders import Dictionary, Latents
from monosema.evaluation.measure import MeasuredRows, RowSums
from monosema.evaluation.patterns import PatternSums
from monosema.evaluation.predictions import TERMS as PREDICTION_TERMS
from monosema.metrics import GroupSums, LatentSums, ReconstructionSums, token_terms
from monosema.metrics.checks import wide
from monosema.metrics.reconstruction import TERMS

ROW_TERMS = ("n", *TERMS, "l0", "l1", "fve")
"""What is summed over rows: their number, ``metrics.reconstruction.TERMS``, latents that fire, ``sum |f|`` and
``1 - ||x - x_hat||^2 / ||x - mean||^2`` (NaN where the mean was not taken before)."""

CLEAN, SPLICED = "clean", "spliced"
"""Runs beside those named after an ablation."""


@final
class Findings:
    """Sums over rows of activations, and by model and run over its predictions; ``n_groups`` groups of documents."""

    def __init__(self, coder: Dictionary, widths_written: Sequence[int], n_groups: int) -> None:
        self.rows = RowSums.empty(coder, widths_written)
        self.outliers = ReconstructionSums.empty(coder.d_out)
        """Of the rows left out of all the others."""
        self.latents = LatentSums.empty(coder.d_sae)
        self.n_groups = n_groups
        self.terms = GroupSums.empty(n_groups, len(ROW_TERMS))
        """By group: ``ROW_TERMS``."""
        self.deviations = GroupSums.empty(n_groups, 2 + coder.d_out)
        """By group: ``left_out_variation``'s columns."""
        self.runs: dict[str, dict[str, GroupSums]] = {}
        """By model and run: ``predictions.TERMS``."""
        self.patterns: dict[str, PatternSums] = {}
        """By run, where attention patterns are compared."""
        self._centre: Tensor | None = None

    def add_rows(
        self,
        measured: MeasuredRows,
        contexts: Tensor | None = None,
        groups: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> None:
        """Rows through the coder, the i-th given in ``contexts[i]`` and ``groups[i]`` where these are known.

        ``mean [d_out]`` is that of all rows, where it was taken before.
        """
        target = measured.target
        contexts, groups = (None if each is None else measured.kept(each) for each in (contexts, groups))
        self.rows = self.rows + measured.sums
        if measured.outliers is not None:
            self.outliers = self.outliers + measured.outliers
        self.latents = self.latents + LatentSums.of(measured.latents, contexts)
        if groups is None or len(target) == 0:
            return
        x, x_hat = wide(target.to(measured.x_hat.device)), wide(measured.x_hat)
        if self._centre is None:
            self._centre = x.mean(0)
        one, moved = x.new_ones(len(x), 1), x - self._centre
        terms = token_terms(x, x_hat)
        level = x.new_full((), math.nan) if mean is None else mean.to(x.device)
        unexplained = terms[:, :1] / (x - level).square().sum(1, keepdim=True)
        fired = _firings(measured.latents, len(x)).to(x.device)
        self.terms += GroupSums.of(torch.cat([one, terms, fired, 1 - unexplained], 1), groups, self.n_groups)
        moments = torch.cat([one, moved.square().sum(1, keepdim=True), moved], 1)
        self.deviations += GroupSums.of(moments, groups, self.n_groups)

    def add_run(self, model: str, run: str, terms: Tensor, groups: Tensor) -> None:
        """The ``terms [n, k]`` of a batch's predictions in one run of a model, the i-th in ``groups[i]``."""
        own = self.runs.setdefault(model, {})
        before = own.get(run, GroupSums.empty(self.n_groups, len(PREDICTION_TERMS)))
        own[run] = before + GroupSums.of(terms, groups, self.n_groups)

    def add_pattern(self, run: str, sums: PatternSums) -> None:
        """A batch's attention patterns in one run."""
        self.patterns[run] = self.patterns[run] + sums if run in self.patterns else sums


def _firings(latents: Latents, n: int) -> Tensor:
    """``[n, 2]`` float64 on the CPU: by row how many latents fire, and their absolute values added up."""
    values = wide(latents.values).abs().cpu()
    terms = torch.stack([(values != 0).to(values.dtype), values], dim=1)
    return torch.zeros(n, 2, dtype=torch.float64).index_add_(0, latents.rows().cpu(), terms)
