"""Everything about one evaluation with a model or several: the batches, and the runs over each.

Whatever does not depend on a dictionary is done once for all of them: the clean run, the ablated ones, the captured
sites. Edited runs begin at the block of the first site edited (``models.suffix``). So a batch costs one forward pass,
one suffix for each ablation and one for each dictionary; where queries or keys are written, each of these and the clean
run also form the patterns of that block's attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.progress import Progress
from monosema.data.dictionary_sites import Sites, side_by_side
from monosema.data.outliers import MEDIAN_ROWS, NormRule
from monosema.data.recorded_outliers import estimated, joined
from monosema.evaluation.contexts import EvaluationContexts
from monosema.evaluation.edited_runs import EditedRuns, Place, Values, Written
from monosema.evaluation.findings import CLEAN, SPLICED, Findings
from monosema.evaluation.measure import MeasuredRows, measure_rows
from monosema.evaluation.patterns import PatternSums, compared_heads, counted_queries
from monosema.evaluation.predictions import CleanPredictions
from monosema.evaluation.predictor import Predictor
from monosema.evaluation.report import Ablation
from monosema.evaluation.tasks import Task, choose_masked, masked_token_task, next_token_task
from monosema.metrics import require_finite
from monosema.metrics.checks import wide
from monosema.models import LanguageModel
from monosema.models.patterns import PatternHeads
from monosema.models.suffix import Suffix

KEPT_BYTES = 2**31
"""Of the values at which runs begin, kept between the pass that takes means and the one that compares runs."""

_LOGITS_PER_STEP = {"cpu": 2**26}
"""Logits of one forward pass, by device (2**27 where not named), which set the batch size where none is given."""

Levels = dict[str, Tensor]
"""By ablation, what the sites written become: ``[d_out]``."""

Kind = tuple[Written, Written, NormRule | None]
"""Sites written; and where rows are left out, sites read and the rule."""


@dataclass(frozen=True)
class Subject:
    """One dictionary evaluated."""

    coder: Dictionary
    """As it is."""
    sites: Sites
    """Where it reads and writes."""
    rule: NormRule | None = None
    """Which rows are left out, if any."""

    @property
    def places(self) -> set[Place]:
        """All its sites."""
        return set(self.sites.places.values())

    @property
    def written(self) -> Written:
        """The sites it writes."""
        return tuple(self.sites.places[name] for name in self.sites.written)

    @property
    def kind(self) -> Kind:
        """What the level of its mean ablation depends on: the sites written, and what is left out."""
        if self.rule is None:
            return self.written, (), None
        return self.written, tuple(self.sites.places[name] for name in self.sites.read), self.rule

    def rows(self, values: Values, counted: Tensor) -> tuple[Tensor, Tensor]:
        """What is read ``[n, d_in]`` and what is to be written ``[n, d_out]``, at ``counted [B, T]``."""
        named = {name: values[place] for name, place in self.sites.places.items()}
        x = side_by_side(named, self.sites.read, counted)
        same = self.sites.written == self.sites.read
        return x, x if same else side_by_side(named, self.sites.written, counted)

    def outlier(self, values: Values, counted: Tensor) -> Tensor | None:
        """``[n]`` bool on the CPU: the positions at ``counted [B, T]`` that are left out; None where none is."""
        if self.rule is None:
            return None
        found = self.rule.outliers(joined(*self.rows(values, counted)))
        return found if bool(found.any()) else None


@dataclass(frozen=True)
class _Batch:
    """Some contexts."""

    index: int
    contexts: Tensor
    special: Tensor
    documents: Tensor | None
    numbers: Tensor
    """``[B]`` the number of each context."""
    groups: Tensor
    """``[B, T]`` the group of each position's document."""

    @property
    def counted(self) -> Tensor:
        return ~self.special


@final
class ModelRuns:
    """One evaluation with models: all is decided, nothing measured yet."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        models: Mapping[str, LanguageModel],
        chosen: EvaluationContexts,
        *,
        batch_size: int | None,
        ablations: Sequence[Ablation],
        mask_token_id: int | None = None,
        seed: int = 0,
    ) -> None:
        """For ``subjects`` on the contexts ``chosen``.

        Args:
            subjects: the dictionaries.
            models: those they read, by name; a single one has the empty name.
            chosen: on what, and how much of it is run spliced and ablated.
            batch_size: contexts in a forward pass; by default what fits.
            ablations: what sites written become in ablated runs.
            mask_token_id: put at the positions an encoder must predict; None for a decoder.
            seed: which positions those are.
        """
        self._subjects, self._models, self._chosen = subjects, models, chosen
        self._batch_size = batch_size or fitting_batch_size(models, chosen.split.context_size)
        self._ablations = ablations
        self._masked = None if mask_token_id is None else choose_masked(chosen.special, seed)
        self._mask_token_id = mask_token_id
        self._known: dict[tuple[str, frozenset[str]], Suffix] = {}
        self._suffixes: dict[Written, dict[str, Suffix]] = {}
        self._whole: dict[str, Suffix] = {}
        self._predictors: dict[str, Predictor] = {}
        self._heads: dict[Written, PatternHeads] = {}
        """By sites written: the heads whose attention patterns are compared."""
        self._no_patterns: dict[Written, str] = {}
        """By sites written: why those of the heads concerned are not."""
        if chosen.n_loss_contexts:
            for key, model in models.items():
                edited = {hook for each in subjects for owner, hook in each.written if owner == key}
                if edited:
                    self._predictors[key] = Predictor(model, edited)
            self._suffixes = {each: self._suffixes_of(each) for each in {each.written: None for each in subjects}}
            self._whole = self._suffixes_of({place for subject in subjects for place in subject.places})
        for written in self._suffixes:
            heads = compared_heads(written, models)
            if isinstance(heads, PatternHeads):
                self._heads[written] = heads
            elif heads:
                self._no_patterns[written] = heads

    def measure(self, progress: bool) -> list[Findings]:
        """What is found of each subject."""
        self._subjects = self._with_medians()
        levels, kept = self._first_pass(progress)
        with Progress("evaluate", self._chosen.contexts.numel(), enabled=progress) as bar:
            return self._second_pass(levels, kept, bar)

    def _second_pass(
        self, levels: Mapping[Kind, Levels], kept: dict[int, dict[str, Tensor]], progress: Progress
    ) -> list[Findings]:
        """The figures, with what ``_first_pass`` gave."""
        n_groups = self._chosen.n_groups
        found = [Findings(each.coder, each.sites.widths_written, n_groups) for each in self._subjects]
        for batch, task in self._batches():
            where, n_tokens = f"batch {batch.index}", batch.contexts.numel()
            n_clean = 0 if task is None else n_tokens // 2  # of the progress that a batch makes, that of its clean run
            if task is None or self._masked is not None:
                values = self._captured(batch.contexts, batch.documents, self._places())
                for subject, own in zip(self._subjects, found, strict=True):
                    self._measure(subject, values, batch, levels, own)
            if task is not None:
                clean, values = self._clean(task, kept.pop(batch.index, {}), where)
                progress.advance(n_clean)
                run = EditedRuns(self._models, self._predictors, self._suffixes, task, batch.counted, clean, values)
                known: dict[tuple[Any, ...], tuple[dict[str, Tensor], PatternSums | None]] = {}
                for subject, own in zip(self._subjects, found, strict=True):
                    measured = self._measure(subject, values, batch, levels, own if self._masked is None else None)
                    groups = batch.groups.flatten()[task.positions]
                    runs = {SPLICED: self._edited(run, subject, measured.spliced, SPLICED, batch)}
                    for name, level in levels[subject.kind].items():
                        outlier = None if measured.outlier is None else measured.outlier.numpy().tobytes()
                        same = (subject.written, name, level.numpy().tobytes(), outlier)
                        if same not in known:  # dictionaries of one site share the run
                            rows = self._ablated(run, subject, level, measured, values, batch)
                            known[same] = self._edited(run, subject, rows, "ablated", batch)
                        runs[name] = known[same]
                    for key in subject.sites.models_written:
                        own.add_run(key, CLEAN, clean[key].terms, groups)
                        for name, (terms, _) in runs.items():
                            own.add_run(key, name, terms[key], groups)
                    for name, (_, pattern) in runs.items():
                        if pattern is not None:
                            own.add_pattern(name, pattern)
            progress.advance(n_tokens - n_clean)
        return found

    def notes(self, subject: Subject) -> list[str]:
        """What a reader of its figures must know."""
        reason = self._no_patterns.get(subject.written)
        return [f"no KL of attention patterns: {reason}"] if reason else []

    def _edited(
        self, run: EditedRuns, subject: Subject, rows: Tensor, name: str, batch: _Batch
    ) -> tuple[dict[str, Tensor], PatternSums | None]:
        """By model, the terms of its predictions with ``rows [n, d_out]`` in place; and patterns, where compared."""
        terms = run.edited(subject.written, rows, name)
        compared = subject.written in self._heads
        return terms, self._pattern(run, subject.written, rows, batch) if compared else None

    def _ablated(
        self, run: EditedRuns, subject: Subject, level: Tensor, measured: MeasuredRows, values: Values, batch: _Batch
    ) -> Tensor:
        """``[n, d_out]``: ``level [d_out]`` everywhere but at outliers, which keep their own value in every run."""
        rows = run.everywhere(level)
        if measured.outlier is None:
            return rows
        own = wide(subject.rows(values, batch.counted)[1]).cpu()
        return torch.where(measured.outlier.unsqueeze(1), own, rows)

    def _pattern(self, run: EditedRuns, written: Written, rows: Tensor, batch: _Batch) -> PatternSums:
        """Of the heads that the one site written concerns, with ``rows [n, d_out]`` in its place."""
        heads, ((key, _),) = self._heads[written], written
        clean, edited = run.patterns(key, heads.layer, written, rows)
        counted = counted_queries(batch.counted, batch.documents, is_encoder=self._models[key].is_encoder)
        return PatternSums.of(clean, edited, heads.heads, counted, batch.groups, self._chosen.n_groups)

    def _measure(
        self, subject: Subject, values: Values, batch: _Batch, levels: Mapping[Kind, Levels], own: Findings | None
    ) -> MeasuredRows:
        """The rows of a batch through a dictionary; added to ``own``, if given."""
        x, target = subject.rows(values, batch.counted)
        where = f"{'+'.join(subject.sites.read)!r}, batch {batch.index}"
        measured = measure_rows(subject.coder, x, target, subject.sites.widths_written, where, subject.rule)
        if own is not None:
            contexts = batch.numbers.unsqueeze(1).expand_as(batch.special)[batch.counted]
            mean = levels.get(subject.kind, {}).get("mean")
            own.add_rows(measured, contexts, batch.groups[batch.counted], mean)
        return measured

    def _with_medians(self) -> list[Subject]:
        """The subjects, with the median norms of the first rows where none are recorded."""
        rules = {i: each.rule for i, each in enumerate(self._subjects) if each.rule is not None}
        wanting = {i: self._subjects[i] for i, rule in rules.items() if rule.medians is None}
        subjects = list(self._subjects)
        if not wanting:
            return subjects
        places = {place for each in wanting.values() for place in each.places}
        rows: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in wanting}
        n_rows = 0
        chosen = self._chosen
        size = min(self._batch_size, -(-MEDIAN_ROWS // chosen.split.context_size))
        for part in batches(chosen, size):
            values, counted = (
                capture_places(self._models, places, chosen.contexts[part], chosen.documents_of(part)),
                ~chosen.special[part],
            )
            for i, each in wanting.items():
                rows[i].append(each.rows(values, counted))
            n_rows += int(counted.sum())
            if n_rows >= MEDIAN_ROWS:
                break
        for i, each in wanting.items():
            x = torch.cat([x for x, _ in rows[i]])[:MEDIAN_ROWS]
            is_same = all(x is y for x, y in rows[i])
            y = x if is_same else torch.cat([y for _, y in rows[i]])[:MEDIAN_ROWS]
            subjects[i] = replace(each, rule=estimated(rules[i], each.coder, x, y))
        return subjects

    def _batches(self) -> Iterator[tuple[_Batch, Task | None]]:
        """All of them; a task for those that are run spliced and ablated."""
        chosen = self._chosen
        for index, part in enumerate(batches(chosen, self._batch_size)):
            contexts, special, documents = chosen.contexts[part], chosen.special[part], chosen.documents_of(part)
            numbers = torch.arange(part.start, part.stop)
            batch = _Batch(index, contexts, special, documents, numbers, chosen.groups[part])
            task = None
            if part.start < chosen.n_loss_contexts:
                if self._masked is None or self._mask_token_id is None:
                    task = next_token_task(contexts, special, chosen.no_target[part], documents)
                else:
                    task = masked_token_task(contexts, self._masked[part], self._mask_token_id, documents)
            yield batch, task

    def _first_pass(self, progress: bool) -> tuple[dict[Kind, Levels], dict[int, dict[str, Tensor]]]:
        """By kind and ablation the level ``[d_out]`` that the sites written become; and where clean runs may begin.

        The mean takes a pass of its own, up to the last site; what it computed before the first is kept for the clean
        run, by batch and model, as far as there is room.
        """
        levels: dict[Kind, Levels] = {}
        kept: dict[int, dict[str, Tensor]] = {}
        kinds = {each.kind: each for each in self._subjects} if self._suffixes else {}
        for kind in kinds:
            widths = [self._models[key].site(hook).width for key, hook in kind[0]]
            levels[kind] = {"zero": torch.zeros(sum(widths), dtype=torch.float64)} if "zero" in self._ablations else {}
        if "mean" not in self._ablations or not kinds:
            return levels, kept
        sums = {kind: [torch.zeros((), dtype=torch.float64) for _ in kind[0]] for kind in kinds}
        n_rows, n_bytes = dict.fromkeys(kinds, 0), 0
        needed = {place for each in kinds.values() for place in (each.places if each.rule else each.written)}
        n_tokens = self._chosen.contexts[: self._chosen.n_loss_contexts].numel()
        with Progress("means of the sites", n_tokens, enabled=progress, passing=True) as bar:
            for batch, task in self._batches():
                if task is None:
                    break
                starts = {} if self._masked is not None or n_bytes >= KEPT_BYTES else self._starts(self._whole)
                values = self._captured(batch.contexts, batch.documents, {*needed, *starts.values()})
                known: dict[tuple[Place, bytes | None], Tensor] = {}
                for kind, subject in kinds.items():
                    outlier = subject.outlier(values, batch.counted)
                    n_rows[kind] += int(batch.counted.sum()) - (0 if outlier is None else int(outlier.sum()))
                    for number, place in enumerate(kind[0]):
                        same = place, None if outlier is None else outlier.numpy().tobytes()
                        if same not in known:
                            known[same] = self._sum(values[place], batch, place, outlier)
                        sums[kind][number] = sums[kind][number] + known[same]
                kept[batch.index] = {key: values[place] for key, place in starts.items()}
                n_bytes += sum(value.nbytes for value in kept[batch.index].values())
                bar.advance(batch.contexts.numel())
        for kind in kinds:
            levels[kind]["mean"] = torch.cat(sums[kind]) / max(1, n_rows[kind])
        return levels, kept

    def _sum(self, value: Tensor, batch: _Batch, place: Place, outlier: Tensor | None) -> Tensor:
        """``[width]`` float64: ``value [B, T, width]`` added up over the positions that are measured."""
        rows = value[batch.counted.to(value.device)]
        require_finite(f"activations read at {place[1]!r}, batch {batch.index}", rows)
        return wide(rows if outlier is None else rows[~outlier.to(rows.device)]).sum(0).cpu()

    def _clean(
        self, task: Task, starts: Mapping[str, Tensor], where: str
    ) -> tuple[dict[str, CleanPredictions], dict[Place, Tensor]]:
        """Predictions by model, and the values of all sites and of where edited runs begin."""
        clean, values = dict[str, CleanPredictions](), dict[Place, Tensor]()
        wanted = self._places()
        for each in self._suffixes.values():
            wanted |= set(self._starts(each).values())
        for key, model in self._models.items():
            names = [hook for owner, hook in sorted(wanted) if owner == key]
            with ExitStack() as stack:
                if key in starts:
                    stack.enter_context(self._whole[key].resumed(starts[key]))
                if key in self._predictors:
                    logits, own = self._predictors[key].predict(task, names)
                    clean[key] = CleanPredictions(logits, task, where)
                else:
                    own = model.capture(task.tokens, names, documents_BT=task.documents)
            values |= {(key, hook): own[hook] for hook in names}
        return clean, values

    def _captured(self, tokens: Tensor, documents: Tensor | None, places: Iterable[Place]) -> dict[Place, Tensor]:
        return capture_places(self._models, places, tokens, documents)

    def _places(self) -> set[Place]:
        return {place for subject in self._subjects for place in subject.places}

    def _suffixes_of(self, places: Iterable[Place]) -> dict[str, Suffix]:
        """By model. Each is found once, as that runs the model on a few tokens."""
        hooks: dict[str, set[str]] = {}
        for key, hook in places:
            hooks.setdefault(key, set()).add(hook)
        for key, own in hooks.items():
            if (key, frozenset(own)) not in self._known:
                self._known[key, frozenset(own)] = Suffix(self._models[key], sorted(own))
        return {key: self._known[key, frozenset(own)] for key, own in hooks.items()}

    def _starts(self, suffixes: Mapping[str, Suffix]) -> dict[str, Place]:
        """By model, where its suffix begins; models run whole are left out."""
        return {key: (key, suffix.start_name) for key, suffix in suffixes.items() if suffix.start_name}


def capture_places(
    models: Mapping[str, LanguageModel], places: Iterable[Place], tokens: Tensor, documents: Tensor | None
) -> dict[Place, Tensor]:
    """Values ``[B, T, width]``; each model runs once, up to the last of its sites."""
    wanted = sorted(set(places))
    values: dict[Place, Tensor] = {}
    for key, model in models.items():
        names = [hook for owner, hook in wanted if owner == key]
        if names:
            own = model.capture(tokens, names, documents_BT=documents)
            values |= {(key, hook): own[hook] for hook in names}
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


def fitting_batch_size(models: Mapping[str, LanguageModel], context_size: int) -> int:
    """Contexts in a forward pass whose logits fit in memory."""
    device = next(iter(models.values())).device
    logits = _LOGITS_PER_STEP.get(torch.device(device).type, 2**27)
    return min(32, max(1, logits // (context_size * sum(model.vocab_size for model in models.values()))))
