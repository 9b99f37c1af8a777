"""``train``: the whole run. Model, stream and coder (or several) in; checkpoints, dictionaries and reports out."""

from __future__ import annotations

import contextlib
import html
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final, overload

from torch import Tensor

from monosema import hub
from monosema.coders import Dictionary
from monosema.coders.trainable import require_sparse_coders
from monosema.core.devices import say_if_threads_spin
from monosema.core.errors import ConfigError
from monosema.core.facts import Facts, shown_as_facts
from monosema.core.files import write_atomically, write_json
from monosema.core.logs import get_logger
from monosema.core.peers import explains_options
from monosema.core.progress import Progress, doing, say
from monosema.data import ActivationCache, ActivationStream, IterableRows, as_row_source
from monosema.data.cache import is_cache
from monosema.data.cache.expectations import model_differences
from monosema.data.outliers import outlier_record
from monosema.evaluation import Report
from monosema.runs.clock import PARTS, Clock, TimedBatches, Usage, times_of
from monosema.runs.columns import Columns, columns_of
from monosema.runs.config import EvaluationOptions
from monosema.runs.divergence import DivergenceWarning
from monosema.runs.figure_log import FigureLog, LastFigures
from monosema.runs.folder import RunFolder
from monosema.runs.held_config import held_config
from monosema.runs.heldout import RowSource, check_heldout, measure, why_no_losses
from monosema.runs.keeper import Keeper, save_coder
from monosema.runs.memory_advice import memory_explained
from monosema.runs.model_loss import model_loss_increase
from monosema.runs.records import knows_outliers, run_config
from monosema.runs.summary import RunSummary, memory_line, summarise, summary_table
from monosema.tracking import Named, Sink, Subscriber
from monosema.training import INITIAL_ROWS, Callback, Checkpoint, CheckpointPlan, Trainer, TrainingConfig
from monosema.training.loop import FitRun, fit_all, stop_requests
from monosema.training.optimizer import OptimizerFactory
from monosema.training.terms import Resample

logger = get_logger("monosema.runs")

Several = Mapping[str, "Dictionary | tuple[Dictionary, TrainingConfig]"]


@shown_as_facts
@dataclass(frozen=True, repr=False)
class TrainingResult:
    """What a run gave."""

    coder: Dictionary
    """The dictionary for raw activations, read back from the run folder where there is one."""
    metrics: dict[str, Any]
    """The last logged figures of training."""
    report: Report | None
    """Its evaluation on held-out text; None where there is none or it was not asked for."""
    folder: Path | None
    """The run folder."""
    n_steps: int
    """Steps of the run."""
    resumed_from: int
    """Step this call went on from; 0 for a fresh run."""
    summary: RunSummary
    """Figures, latents, tokens and time in one row: what ``summary.json`` holds."""
    error: str | None = None
    """Why the run stopped early, where it is one of several; the coder then has the weights before."""

    def _facts(self) -> Facts:
        kind = f"{type(self.coder).__name__} at {self.coder.hook_name or 'a site not recorded'}"
        return Facts(f"TrainingResult of {self.summary.name}", {"coder": kind, **self.summary.facts})


@final
class TrainingResults(dict[str, TrainingResult]):
    """The results of several coders by name: a ``dict`` that prints as the table that the run ends with."""

    def __repr__(self) -> str:
        return summary_table([result.summary for result in self.values()]) if self else "no results"

    def _repr_html_(self) -> str:
        """The same table, as text."""
        return f"<pre>{html.escape(repr(self))}</pre>"


@overload
def train(
    coder: Several, source: Any, config: TrainingConfig | None = None, **options: Any
) -> dict[str, TrainingResult]: ...
@overload
def train(coder: Dictionary, source: Any, config: TrainingConfig | None = None, **options: Any) -> TrainingResult: ...


@explains_options
def train(
    coder: Dictionary | Several,
    source: RowSource | Any,
    config: TrainingConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    evaluation: EvaluationOptions | bool = True,
    on_step: Callable[[Trainer], None] | None = None,
    callbacks: Sequence[Callback] = (),
    subscribers: Sequence[Subscriber] = (),
    optimizer: OptimizerFactory | None = None,
    progress: bool | float = True,
    start_at_other_sites: bool = False,
    **row_options: Any,
) -> TrainingResult | dict[str, TrainingResult]:
    """Train ``coder`` on ``source`` and, with ``out``, keep the run in a folder that the same call resumes.

    Args:
        coder: a fresh or loaded coder, trained in place. Or several on one pass of the source, ``{"name": coder}`` or
            ``{"name": (coder, config)}``: each has its own metrics and its own folder ``out/name``, one that stops
            being finite stops alone, and the result is a mapping as well. A coder made with ``hook_name`` reads that
            site of a stream of several.
        source: an ``ActivationStream``; an ``ActivationCache``, or the path of one (``row_options`` then go to it); or
            rows ``[n, d]``: a tensor, NumPy array, ``.npy`` path, DataLoader or any iterable (``row_options`` such as
            ``batch_size``, ``epochs``, ``validation_fraction`` then go to ``ArrayRows`` or ``IterableRows``). Arrays of
            several sites are ``{site: array}``, row ``i`` of each being token ``i``: a crosscoder reads and writes all
            of them, a transcoder or cross-layer transcoder writes ``targets=`` (``train(transcoder, x, config,
            targets=y)``; ``{site: array}`` as well where ``source`` is). Rows of a loader hold all that is read and
            then all that is written, side by side.
        config: the run; the defaults work untouched.
        out: the run folder. A run that was stopped or killed goes on bit for bit; a finished one is read.
        evaluation: evaluate the dictionary as saved at the end, on the held-out side of the stream's tokens or on an
            array's or cache's validation rows.
        on_step: called with the trainer after every step.
        callbacks: further callbacks of the loop.
        subscribers: objects with ``log(step, figures)``, which is called with every figure that is logged, of training
            and of held-out rows (``heldout/…``), as ``metrics.jsonl`` has them. Of several coders, ``NAME/`` stands
            before each figure.
        optimizer: makes the optimiser in place of Adam, ``torch.optim.NAdam`` or
            ``lambda parameters: torch.optim.SGD(parameters, momentum=0.9)``; see ``Trainer``.
        progress: show bars on a terminal and lines elsewhere: every 2.5 seconds in the first minute and every 30 after
            it (every so many, given a number).
        start_at_other_sites: whether a coder that names sites may be trained on others, and be named by those. A coder
            without names takes the source's; one with names keeps them on plain rows, which have none.

    Raises:
        ShapeError: the coder's widths are not the source's.
        DataError: the source is too short for ``config.tokens``, or gives values that are not finite.
        ConfigError: ``out`` belongs to another run (of an array, to other rows): what differs is listed and nothing is
            overwritten; or the coder is for other sites than the source's, or another model than a cache's.
        NonFiniteStepError: a step of the only coder was not finite.
        OutOfMemoryError: memory ran out; the message says what the run holds and which options need less.
        RunInterrupted: SIGINT, SIGTERM or SIGHUP; the step was finished and saved.
    """
    clock = Clock()
    several = coder if isinstance(coder, Mapping) else {"": coder}
    if not several:
        raise ConfigError("train: no coder given")
    pairs = {name: _with_config(each, config) for name, each in several.items()}
    if isinstance(coder, Mapping):
        _check_names(pairs)
    rows = _rows(source, next(iter(pairs.values()))[0], row_options)
    if isinstance(rows, ActivationStream):
        rows.shows_progress = progress is not False
    if out is not None:
        _as_begun(rows, [Path(out) / name for name in pairs])
    rows.plan(max(_tokens(config, rows.batch_size) for _, config in pairs.values()))
    options = evaluation if isinstance(evaluation, EvaluationOptions) else EvaluationOptions()
    extra: list[Callback] = [*callbacks, *([_OnStep(on_step)] if on_step is not None else [])]
    with contextlib.ExitStack() as folders:
        runs = []
        for name, (each, own) in pairs.items():
            path = None if out is None else Path(out) / name
            if isinstance(rows, ActivationCache) and not start_at_other_sites:
                _refuse_another_model(each, rows)
            columns = columns_of(each, rows.layout, at_other_sites=start_at_other_sites)
            runs.append(_Run(name, each, own, rows, columns, path, options, optimizer, clock))
        for run in runs:  # none before every folder was found fit
            run.open(extra, [Named(run.name, each) if run.name else each for each in subscribers], folders)
        kept = [str(run.folder.path) for run in runs if run.folder is not None]
        with memory_explained([run.trainer for run in runs], rows, kept):
            say_if_threads_spin(runs[0].trainer.coder.device)
            _seek(runs, rows, clock, progress is not False)
            for run in runs:
                run.record_outliers()
            _fit(runs, rows, progress, clock)
            if not isinstance(coder, Mapping) and runs[0].fit.error is not None:
                raise runs[0].fit.error
            wants_report = evaluation is not False and not isinstance(rows, IterableRows)
            results = TrainingResults((run.name, run.finish(progress, wants_report)) for run in runs)
        table = summary_table([result.summary for result in results.values()])
        if out is not None:
            write_atomically(Path(out) / "summary.txt", table + "\n")
    if progress is not False and logger.isEnabledFor(logging.WARNING):
        say(table)
    return results if isinstance(coder, Mapping) else results[""]


class _Run:
    """One coder of a call of ``train``: its trainer, its columns, its folder."""

    def __init__(
        self,
        name: str,
        coder: Dictionary,
        config: TrainingConfig,
        rows: RowSource,
        columns: Columns,
        path: Path | None,
        options: EvaluationOptions,
        optimizer: OptimizerFactory | None,
        clock: Clock,
    ):
        check_heldout(config, rows, columns)
        self.name, self.rows, self.options, self.clock = name, rows, options, clock
        self.columns = columns
        coder = require_sparse_coders(coder, "trained")
        coder.bind(columns.hook_name, columns.hook_name_out, columns.record(rows.record()))
        self.trainer = Trainer(coder, config, rows.batch_size, connection_directions(config, coder), optimizer)
        if isinstance(rows, IterableRows):
            self.trainer.calibration_rows = lambda n: self.newest[:n]
        else:
            self.trainer.candidate_rows = lambda n: self.columns.of(rows.preview(n))
            self.trainer.calibration_rows = self.trainer.candidate_rows
        if isinstance(config.revive, Resample) and config.revive.rule.by == "model_loss":
            if not isinstance(rows, ActivationStream):
                raise ConfigError('Resample(by="model_loss") needs the model: train on an ActivationStream')
            if not all(each.has_head for each in rows.models.values() or [rows.model]):
                raise ConfigError(f'Resample(by="model_loss") needs losses: {why_no_losses(rows, columns)}')
            self.trainer.model_losses = model_loss_increase(
                rows, config.seed, one_per_context=config.revive.rule.one_per_context
            )
        self.last = LastFigures()
        self.folder: RunFolder | None = None
        self.checkpoint: Checkpoint | None = None
        if path is not None:
            plain = run_config(coder, rows, config, options)
            if optimizer is not None:
                plain["optimizer"] = self.trainer.optimizer_record()
            plan = CheckpointPlan.of(config, rows.batch_size, self.trainer.n_steps)
            self.folder = RunFolder(path, plain, plan)
            self.folder.refuse_others()

    def open(
        self, callbacks: Sequence[Callback], subscribers: Sequence[Subscriber], folders: contextlib.ExitStack
    ) -> None:
        """Lock the folder until ``folders`` closes and take up what is in it."""
        if self.folder is not None:
            self.checkpoint = folders.enter_context(self.folder).newest_checkpoint()
        self.used = self._used_before()
        listeners = [*([] if self.folder is None else [self.folder.metrics_log]), *subscribers]
        self.sink = Sink([self.last, *listeners])
        log = FigureLog(self.sink, self.rows, self.columns, self.options if listeners else None, self.used)
        own: list[Callback] = [self.used, DivergenceWarning(self.name), log]
        if self.folder is not None:
            keeper = folders.enter_context(Keeper(self.folder, self.rows, self.used, log))
            if self.checkpoint is not None:
                keeper.resume(self.checkpoint, self.trainer.config.keep_best)
            own.append(keeper)
        self.start = 0 if self.checkpoint is None else self.checkpoint.step
        self.fit = FitRun(self.trainer, [*own, *callbacks], self._own_columns, self.name)
        self.failure = None if self.folder is None else self.folder.failure()
        if self.checkpoint is not None:
            self.trainer.load_state_dict(self.checkpoint.tensors, self.checkpoint.plain["trainer"])
        if self.folder is not None:
            self.folder.cut_metrics(self.checkpoint)

    def _used_before(self) -> Usage:
        """What earlier calls used; of a finished run, its evaluation at the end included."""
        if self.folder is None or self.checkpoint is None:
            return Usage(self.clock, dict.fromkeys(PARTS, 0.0))
        plain, times = self.checkpoint.plain, times_of(self.checkpoint.plain)
        if self.checkpoint.step == self.trainer.n_steps:
            times = times_of(self.folder.summary()) or times
        return Usage(self.clock, times, plain.get("peak_memory"))

    def _own_columns(self, batch: Tensor) -> Tensor:
        """Its own columns of ``batch``, remembered until the next one."""
        self.newest = self.columns.of(batch)
        return self.newest

    def record_outliers(self) -> None:
        """Record in the coder which rows of its sites are left out, so that whoever reads it leaves out the same."""
        rule = self.rows.outliers.rule
        if self.columns.slices is not None and rule is not None:
            rule = rule.of_sites(self.columns.layout.hook_names)
        self.trainer.coder.metadata.update(outlier_record(rule))

    @property
    def is_unfinished(self) -> bool:
        return self.failure is None and self.trainer.step_number < self.trainer.n_steps

    def finish(self, progress: bool | float, wants_report: bool) -> TrainingResult:
        """Save, read back, evaluate, sum up."""
        trainer, folder = self.trainer, self.folder
        error = self.failure if self.fit.error is None else str(self.fit.error)
        if error is not None:
            if folder is not None:
                folder.record_failure(error)
            return self._result(_finish(trainer), None, error)
        if folder is None:
            finished = _finish(trainer)
            return self._result(finished, self._measure(finished, progress) if wants_report else None)
        is_finished = self.checkpoint is not None and self.start == trainer.n_steps
        if not (is_finished and folder.has_whole("coder")):
            with self.used.measuring("saving"), folder.writing("coder", "report.json"):
                save_coder(trainer, folder.coder_path)
                folder.report_path.unlink(missing_ok=True)
        _finish(trainer)
        saved = hub.load(folder.coder_path, device=trainer.coder.device)
        report = Report.load(folder.report_path) if folder.has_whole("report.json") else None
        if report is None and wants_report:
            report = self._measure(saved, progress)
            if report is not None:
                with self.used.measuring("saving"), folder.writing("report.json"):
                    write_json(folder.report_path, report.to_dict())
        result = self._result(saved, report)
        return result if wants_report else replace(result, report=None)

    def _measure(self, coder: Dictionary, progress: bool | float) -> Report | None:
        with self.used.measuring("evaluation"):
            return measure(coder, self.rows, self.columns, self.options, progress)

    def _result(self, coder: Dictionary, report: Report | None, error: str | None = None) -> TrainingResult:
        trainer, folder = self.trainer, self.folder
        path = None if folder is None else folder.path
        metrics = self.last.metrics
        if folder is not None:
            metrics = next((line for line in reversed(folder.metrics()) if "loss" in line), {})
        summary = summarise(self.name, trainer, metrics, report, self.used, path, error)
        if summary.warning is not None:
            logger.warning("%s%s", f"{self.name}: " if self.name else "", summary.warning)
        if folder is not None:
            write_json(folder.summary_path, summary.to_dict())
        return TrainingResult(coder, metrics, report, path, trainer.n_steps, self.start, summary, error)


class _OnStep(Callback):
    def __init__(self, function: Callable[[Trainer], None]):
        self._function = function

    def on_step(self, trainer: Trainer) -> None:
        self._function(trainer)


class _Shown(Callback):
    """Progress for people; a subscriber, too."""

    def __init__(self, bar: Progress, batch_size: int):
        self._bar, self._batch_size = bar, batch_size

    def on_step(self, trainer: Trainer) -> None:
        self._bar.advance(self._batch_size)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        names = {"loss": "loss", "l0": "L0", "fve": "FVE", "dead_fraction": "dead"}
        if "loss" in figures:
            self._bar.figures({shown: figures[name] for name, shown in names.items()})


def _with_config(
    each: Dictionary | tuple[Dictionary, TrainingConfig], config: TrainingConfig | None
) -> tuple[Dictionary, TrainingConfig]:
    default = config if config is not None else TrainingConfig()
    return each if isinstance(each, tuple) else (each, default)


def _check_names(pairs: Mapping[str, tuple[Dictionary, TrainingConfig]]) -> None:
    for name in pairs:
        if not name or Path(name).name != name or name.startswith("."):
            raise ConfigError(f"{name!r} cannot name a run: it becomes a folder below out=; use letters and digits")
    coders = [coder for coder, _ in pairs.values()]
    if len({id(coder) for coder in coders}) < len(coders):
        raise ConfigError("the same coder object is given twice; make one for each run")


def _rows(source: Any, coder: Dictionary, row_options: dict[str, Any]) -> RowSource:
    if isinstance(source, RowSource):
        if row_options:
            raise TypeError(f"{', '.join(row_options)}: options of plain rows; {type(source).__name__} has its own")
        return source
    if is_cache(source):
        return ActivationCache(source, **row_options)
    is_split = not isinstance(source, Mapping) and row_options.get("targets") is None
    if is_split and (not hasattr(source, "__next__") or row_options):
        row_options = {"d_in": None if coder.reconstructs else coder.d_in, **row_options}
    return as_row_source(source, **row_options)


def _as_begun(rows: RowSource, folders: Sequence[Path]) -> None:
    """Leave no row out where a run in one of ``folders`` was begun before that was done."""
    held = [config for config in map(held_config, folders) if config is not None]
    if rows.outliers.multiple is not None and not all(map(knows_outliers, held)):
        logger.warning("the run was begun without outlier_norm_multiple; it goes on without, and leaves no row out")
        rows.outliers.turn_off()


def _refuse_another_model(coder: Dictionary, cache: ActivationCache) -> None:
    different = model_differences(coder.metadata, cache.record())
    if different:
        raise ConfigError(
            f"the coder was trained on another model than the one {cache.folder} was made from "
            f"({'; '.join(different)}); cache that model's activations, or train(..., start_at_other_sites=True)"
        )


def _tokens(config: TrainingConfig, batch_size: int) -> int:
    return (config.main_steps(batch_size) + config.finetuning_steps(batch_size)) * batch_size


def connection_directions(config: TrainingConfig, coder: Dictionary) -> Tensor | None:
    """The directions of the SAE of ``config.sparse_connection``, if there is one."""
    connection = config.sparse_connection
    if connection is None:
        return None
    sae = hub.load(connection.path, device=coder.device)
    if sae.is_layered:
        raise ConfigError("sparse_connection: the path holds a stack of coders; give an SAE")
    latents = range(sae.d_sae)
    directions = sae.encoder_rows(latents) if connection.directions == "encoder" else sae.decoder_rows(latents)
    if directions.shape[1] != coder.d_out:
        width = directions.shape[1]
        raise ConfigError(f"sparse_connection: the SAE's directions are {width} wide, the coder writes {coder.d_out}")
    return directions.detach()


def _seek(runs: Sequence[_Run], rows: RowSource, clock: Clock, shown: bool) -> None:
    """Put ``rows`` where the run that is furthest behind stands, and prepare fresh ones."""
    unfinished = [run for run in runs if run.is_unfinished]
    if not unfinished:
        ends = [run.checkpoint.plain.get("rows", {}) for run in runs if run.checkpoint is not None]
        rows.outliers.load_state_dict(next((end["outliers"] for end in ends if "outliers" in end), {}))
        return
    behind = min(unfinished, key=lambda run: run.start)
    with stop_requests():
        _go_to(behind, unfinished, rows, clock, shown)


def _go_to(behind: _Run, unfinished: Sequence[_Run], rows: RowSource, clock: Clock, shown: bool) -> None:
    if behind.checkpoint is not None:
        if isinstance(rows, IterableRows):
            logger.warning(
                "the source of rows cannot seek: the run goes on from step %d with rows from the start of the source",
                behind.start,
            )
        else:
            saved = behind.checkpoint
            tensors = {k.removeprefix("rows."): v for k, v in saved.tensors.items() if k.startswith("rows.")}
            rows.load_state_dict({**saved.plain["rows"], **tensors})
        rows.norm_rule()
        logger.info("resuming %s at step %d of %d", behind.name or "the run", behind.start, behind.trainer.n_steps)
    for run in unfinished:
        if run.start == behind.start:  # the others wait until the rows reach them
            run.used.start(from_the_beginning=True)
        if run.checkpoint is None:
            with clock.part("collecting"):
                first = rows.preview(INITIAL_ROWS)
            with clock.part("steps"), doing("setting the initial values", enabled=shown):
                run.trainer.initialise(run.columns.of(first))


def _fit(runs: Sequence[_Run], rows: RowSource, progress: bool | float, clock: Clock) -> None:
    unfinished = [run for run in runs if run.is_unfinished]
    if not unfinished:
        return
    slowest = max(unfinished, key=lambda run: run.trainer.n_steps)
    total, done = slowest.trainer.n_steps * rows.batch_size, slowest.trainer.tokens_seen
    interval = 30.0 if isinstance(progress, bool) else progress
    with Progress("train", total, done=done, interval=interval, enabled=progress is not False) as bar:
        if progress is not False and logger.isEnabledFor(logging.WARNING):
            kept = [run.folder is not None for run in unfinished]
            say(memory_line([run.trainer.memory() for run in unfinished], has_folders=any(kept)))
        shown = _Shown(bar, rows.batch_size)
        slowest.fit.callbacks = [shown, *slowest.fit.callbacks]
        slowest.sink.add(shown)
        with clock.part("steps"):
            fit_all([run.fit for run in unfinished], TimedBatches(rows, clock))
        for run in unfinished:
            run.used.stop()


def _finish(trainer: Trainer) -> Dictionary:
    """A copy of the finished coder; the caller's own coder gets the same weights, for raw activations.

    Both carry the firing densities of the end of training, as what is saved does.
    """
    finished = trainer.inference_coder()
    for coder in (finished, trainer.coder):
        coder.metadata["log10_density"] = trainer.statistics.log10_density().cpu()
    trainer.coder.load_state_dict(finished.state_dict())
    trainer.coder.is_trained = True
    trainer.coder.requires_grad_(False)
    return finished
