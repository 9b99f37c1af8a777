"""Everything about one evaluation with a model or several: the batches, and the runs over each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.progress import Progress
from monosema.evaluation.contexts import EvaluationContexts
from monosema.evaluation.losses import (
    Edits,
    LossSums,
    Task,
    choose_masked,
    compare_runs,
    masked_token_task,
    next_token_task,
    replace_by,
)
from monosema.evaluation.measure import RowSums, measure_rows
from monosema.evaluation.report import Ablation
from monosema.evaluation.sites import Sites, side_by_side
from monosema.models import LanguageModel

_LOGITS_PER_STEP = {"cpu": 2**23}
"""Logits of one forward pass, by device (2**27 where not named), which set the batch size where none is given."""


@dataclass(frozen=True)
class ModelRuns:
    """One evaluation with a model: all is decided, nothing measured yet."""

    coder: Dictionary
    """The coder evaluated."""
    models: Mapping[str, LanguageModel]
    """The models it reads, by name; a single one has the empty name."""
    sites: Sites
    """Where."""
    chosen: EvaluationContexts
    """On what."""
    batch_size: int
    """Contexts in a forward pass."""
    ablation: Ablation
    """What the site becomes in the ablated run."""
    mask_token_id: int | None = None
    """Put at the positions an encoder must predict; None for a decoder."""
    seed: int = 0
    """Which positions those are."""

    def measure(self, progress: Progress) -> tuple[RowSums, dict[str, LossSums]]:
        """The sums over all contexts, and of each model written those over what is also run spliced and ablated."""
        masked = None if self.mask_token_id is None else choose_masked(self.chosen.special, self.seed)
        level = self._ablated_level()
        rows = RowSums.empty(self.coder, self.sites.widths_written)
        losses = {key: LossSums.empty() for key in self.sites.models_written}
        for index, part in enumerate(batches(self.chosen, self.batch_size)):
            where = f"{'+'.join(self.sites.read)!r}, batch {index}"
            contexts, special = self.chosen.contexts[part], self.chosen.special[part]
            documents = self.chosen.documents_of(part)
            if part.start >= self.chosen.n_loss_contexts:
                rows = rows + self._reconstruct(self._capture(contexts, documents), special, where)[0]
            elif masked is None or self.mask_token_id is None:
                task = next_token_task(contexts, special, self.chosen.no_target[part], documents)
                logits, values = self._clean_runs(task)
                sums, x_hat = self._reconstruct(values, special, where)
                rows = rows + sums
                losses = self._compare(losses, task, logits, values, special, x_hat, level, where)
            else:
                rows = rows + self._reconstruct(self._capture(contexts, documents), special, where)[0]
                task = masked_token_task(contexts, masked[part], self.mask_token_id, documents)
                logits, values = self._clean_runs(task)
                x_hat = self._reconstruct(values, special, where)[1]
                losses = self._compare(losses, task, logits, values, special, x_hat, level, where)
            progress.advance(contexts.numel())
        return rows, losses

    def _reconstruct(self, values: Mapping[str, Tensor], special: Tensor, where: str) -> tuple[RowSums, Tensor]:
        """The sums over positions that are not special, and their reconstructions ``[n, d_out]``."""
        sites = self.sites
        x = side_by_side(values, sites.read, ~special)
        target = x if sites.written == sites.read else side_by_side(values, sites.written, ~special)
        measured = measure_rows(self.coder, x, target, sites.widths_written, where)
        return measured.sums, measured.x_hat

    def _compare(
        self,
        losses: Mapping[str, LossSums],
        task: Task,
        clean_logits: dict[str, Tensor],
        values: Mapping[str, Tensor],
        special: Tensor,
        x_hat: Tensor,
        level: Tensor,
        where: str,
    ) -> dict[str, LossSums]:
        """``losses`` with those of the spliced and the ablated run of each model.

        Both start from the sites' clean values, kept at special positions.
        """
        spliced: dict[str, dict[str, Tensor]] = {key: {} for key in losses}
        ablated: dict[str, dict[str, Tensor]] = {key: {} for key in losses}
        widths = list(self.sites.widths_written)
        for name, new, zero in zip(self.sites.written, x_hat.split(widths, 1), level.split(widths), strict=True):
            key, hook = self.sites.places[name]
            clean = values[name]
            edited = ~special.to(clean.device)
            spliced[key][hook], ablated[key][hook] = clean.clone(), clean.clone()
            spliced[key][hook][edited] = new.to(device=clean.device, dtype=clean.dtype)
            ablated[key][hook][edited] = zero.to(device=clean.device, dtype=clean.dtype)
        total = {}
        for key, sums in losses.items():
            edits = _replacing(spliced[key]), _replacing(ablated[key])
            total[key] = sums + compare_runs(self.models[key], task, clean_logits.pop(key), *edits, where)
        return total

    def _clean_runs(self, task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits by model and the sites' values by the coder's names."""
        logits, values = {}, {}
        for key, model in self.models.items():
            own = self.sites.of_model(key)
            if key in self.sites.models_written:
                logits[key], found = clean_run(model, task, own.values())
            else:
                found = model.capture(task.tokens, own.values(), documents_BT=task.documents)
            values.update({name: found[hook] for name, hook in own.items()})
        return logits, values

    def _capture(
        self, tokens: Tensor, documents: Tensor | None, names: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        return capture_sites(self.models, self.sites, tokens, documents, names)

    def _ablated_level(self) -> Tensor:
        """``[d_out]``: what the sites written become in the ablated run. The mean takes a pass of its own."""
        total, n_rows = torch.zeros(self.coder.d_out, dtype=torch.float64), 0
        if self.ablation == "zero":
            return total
        for part in batches(self.chosen, self.batch_size, self.chosen.n_loss_contexts):
            documents = self.chosen.documents_of(part)
            values = self._capture(self.chosen.contexts[part], documents, self.sites.written)
            rows = side_by_side(values, self.sites.written, ~self.chosen.special[part])
            total, n_rows = total + rows.cpu().to(torch.float64).sum(0), n_rows + len(rows)
        return total / max(1, n_rows)


def _replacing(values: Mapping[str, Tensor]) -> Edits:
    return {hook_name: replace_by(value) for hook_name, value in values.items()}


def capture_sites(
    models: Mapping[str, LanguageModel],
    sites: Sites,
    tokens: Tensor,
    documents: Tensor | None,
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The sites' values ``[B, T, width]`` by the coder's names (all of them, or ``names``); each model runs once."""
    wanted = set(sites.places if names is None else names)
    values: dict[str, Tensor] = {}
    for key, model in models.items():
        own = {name: hook for name, hook in sites.of_model(key).items() if name in wanted}
        if own:
            found = model.capture(tokens, own.values(), documents_BT=documents)
            values.update({name: found[hook] for name, hook in own.items()})
    return values


def batches(chosen: EvaluationContexts, batch_size: int, stop: int | None = None) -> Iterator[slice]:
    """The first ``stop`` contexts (all by default) in slices of at most ``batch_size``.

    None crosses ``n_loss_contexts``.
    """
    start, stop = 0, len(chosen.contexts) if stop is None else stop
    while start < stop:
        end = min(start + batch_size, stop)
        if start < chosen.n_loss_contexts < end:
            end = chosen.n_loss_contexts
        yield slice(start, end)
        start = end


def clean_run(model: LanguageModel, task: Task, hook_names: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and sites' values from one forward pass, recorded by an edit that changes nothing."""
    values: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[[Tensor], Tensor]:
        def record(value: Tensor) -> Tensor:
            values[name] = value.detach().clone()  # the model may continue in place
            return value

        return record

    names = list(dict.fromkeys(hook_names))
    with model.edits({name: recorder(name) for name in names if model.site(name).writable}):
        logits = model(task.tokens, documents_BT=task.documents)
    read_only = [name for name in names if name not in values]
    if read_only:
        values |= model.capture(task.tokens, read_only, documents_BT=task.documents)
    return logits, values


def fitting_batch_size(models: Mapping[str, LanguageModel], context_size: int) -> int:
    """Contexts in a forward pass whose logits fit in memory."""
    device = next(iter(models.values())).device
    logits = _LOGITS_PER_STEP.get(torch.device(device).type, 2**27)
    return min(32, max(1, logits // (context_size * sum(model.vocab_size for model in models.values()))))
