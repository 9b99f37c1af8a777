"""``train``: the whole run. Model, stream and coder in; checkpoints, dictionary and report out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from monosema import hub
from monosema.coders import SparseCoder
from monosema.core.errors import ConfigError, ShapeError
from monosema.core.files import read_json, write_json
from monosema.core.progress import Progress
from monosema.data import ActivationStream, ArrayRows, IterableRows, as_row_source
from monosema.evaluation import Report, evaluate
from monosema.runs.config import EvaluationOptions
from monosema.runs.folder import RunFolder
from monosema.runs.records import run_config
from monosema.training import INITIAL_ROWS, Callback, Checkpoint, Trainer, TrainingConfig, fit

logger = logging.getLogger("monosema.runs")

RowSource = ActivationStream | ArrayRows | IterableRows


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave."""

    coder: SparseCoder
    """The dictionary for raw activations, read back from the run folder where there is one."""
    metrics: dict[str, float]
    """The last logged figures of training."""
    report: Report | None
    """Its evaluation on held-out text; None where there is none or it was not asked for."""
    folder: Path | None
    """The run folder."""
    n_steps: int
    """Steps of the run."""
    resumed_from: int
    """Step this call went on from; 0 for a fresh run."""


def train(
    coder: SparseCoder,
    source: RowSource | Any,
    config: TrainingConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    evaluation: EvaluationOptions | bool = True,
    on_step: Callable[[Trainer], None] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | float = True,
    **row_options: Any,
) -> TrainingResult:
    """Train ``coder`` on ``source`` and, with ``out``, keep the run in a folder that the same call resumes.

    Args:
        coder: a fresh or loaded coder; trained in place.
        source: an ``ActivationStream``; or rows ``[n, d]``: a tensor, NumPy array, ``.npy`` path, DataLoader or any
            iterable (``row_options`` such as ``batch_size``, ``epochs``, ``validation_fraction`` then go to
            ``ArrayRows`` or ``IterableRows``). A transcoder's rows hold input, then target.
        config: the run; the defaults work untouched.
        out: the run folder. A run that was stopped or killed goes on bit for bit; a finished one is read.
        evaluation: evaluate the dictionary as saved at the end, on the held-out side of the stream's tokens or on an
            array's validation rows.
        on_step: called with the trainer after every step.
        callbacks: further callbacks of the loop.
        progress: show a bar on a terminal, a line every 30 seconds elsewhere (every so many, given a number).

    Raises:
        ShapeError: the coder's widths are not the source's.
        DataError: the source is too short for ``config.tokens``, or gives values that are not finite.
        ConfigError: ``out`` belongs to another run; what differs is listed and nothing is overwritten.
        RunInterrupted: SIGINT or SIGTERM; the step was finished and saved.
    """
    if isinstance(coder, Mapping):
        raise ConfigError("several coders on one stream cannot be trained yet; call train once for each")
    config = config if config is not None else TrainingConfig()
    rows = source if isinstance(source, (ActivationStream, ArrayRows, IterableRows)) else None
    if rows is None:
        if not hasattr(source, "__next__") or row_options:
            row_options = {"d_in": None if coder.d_in == coder.d_out else coder.d_in, **row_options}
        rows = as_row_source(source, **row_options)
    elif row_options:
        raise TypeError(f"{', '.join(row_options)}: options of plain rows; {type(rows).__name__} has its own")
    _check_widths(coder, rows)
    trainer_tokens = max(1, config.tokens // rows.batch_size) * rows.batch_size
    rows.plan(trainer_tokens)
    coder.bind(rows.layout.read_name, rows.layout.write_name, rows.record())
    trainer = Trainer(coder, config, rows.batch_size)
    options = evaluation if isinstance(evaluation, EvaluationOptions) else EvaluationOptions()
    wants_report = evaluation is not False and not isinstance(rows, IterableRows)
    extra: list[Callback] = [*callbacks, *([_OnStep(on_step)] if on_step is not None else [])]
    if out is None:
        trainer.initialise(rows.preview(INITIAL_ROWS))
        last = _run(trainer, rows, extra, progress)
        finished = _finish(trainer)
        report = _evaluate(finished, rows, options, progress) if wants_report else None
        return TrainingResult(finished, last, report, None, trainer.n_steps, 0)
    plain = run_config(coder, rows, config, options)
    with RunFolder(out, plain, config.keep_checkpoints) as folder:
        checkpoint = folder.checkpoints.newest()
        start = _restore(trainer, rows, checkpoint) if checkpoint is not None else 0
        folder.cut_metrics(start)
        if checkpoint is None:
            trainer.initialise(rows.preview(INITIAL_ROWS))
        else:
            logger.info("resuming %s at step %d of %d", folder.path, start, trainer.n_steps)
        if trainer.step_number < trainer.n_steps:
            _run(trainer, rows, [*extra, _Keeper(folder, rows, options)], progress)
        if checkpoint is None or start < trainer.n_steps or not folder.coder_path.exists():
            _save_coder(trainer, folder.coder_path)
            folder.report_path.unlink(missing_ok=True)
        _finish(trainer)
        saved = hub.load(folder.coder_path, device=coder.device)
        report = _report(folder, saved, rows, options, progress) if wants_report else None
        lines = folder.metrics()
        return TrainingResult(saved, lines[-1] if lines else {}, report, folder.path, trainer.n_steps, start)


class _OnStep(Callback):
    def __init__(self, function: Callable[[Trainer], None]):
        self._function = function

    def on_step(self, trainer: Trainer) -> None:
        self._function(trainer)


class _Shown(Callback):
    """Progress for people."""

    def __init__(self, bar: Progress, batch_size: int):
        self._bar, self._batch_size = bar, batch_size

    def on_step(self, trainer: Trainer) -> None:
        self._bar.advance(self._batch_size)

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        names = {"loss": "loss", "l0": "L0", "fve": "FVE", "dead_fraction": "dead"}
        self._bar.figures({shown: metrics[name] for name, shown in names.items()})


class _Last(Callback):
    """Remembers the newest logged figures."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.metrics = {"step": trainer.step_number, **metrics}


class _Keeper(Callback):
    """Writes metrics and checkpoints into the run folder."""

    def __init__(self, folder: RunFolder, rows: RowSource, options: EvaluationOptions):
        self._folder, self._rows, self._options = folder, rows, options

    def on_step(self, trainer: Trainer) -> None:
        every = trainer.config.eval_every
        if every > 0 and trainer.step_number % every == 0 and isinstance(self._rows, ActivationStream):
            report = _evaluate(trainer.inference_coder(), self._rows, self._options, progress=False)
            if report is not None:
                figures = {
                    name: getattr(report, name) for name in ("fve", "l0", "ce_loss_score", "kl", "dead_fraction")
                }
                line = {f"heldout/{name}": value for name, value in figures.items()}
                self._folder.append_metrics({"step": trainer.step_number, **line})

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._folder.append_metrics({"step": trainer.step_number, **metrics})

    def on_checkpoint(self, trainer: Trainer) -> None:
        tensors, plain = trainer.state_dict()
        state: dict[str, Any] = {"trainer": plain}
        if not isinstance(self._rows, IterableRows):
            stream = self._rows.state_dict()
            tensors |= {f"rows.{name}": value for name, value in stream.items() if isinstance(value, Tensor)}
            state["rows"] = {name: value for name, value in stream.items() if not isinstance(value, Tensor)}
        self._folder.checkpoints.write(
            trainer.step_number, tensors, state, lambda path: _save_coder(trainer, path / "coder")
        )


def _run(trainer: Trainer, rows: RowSource, callbacks: list[Callback], progress: bool | float) -> dict[str, float]:
    last = _Last()
    total, done = trainer.n_steps * rows.batch_size, trainer.tokens_seen
    interval = 30.0 if isinstance(progress, bool) else progress
    with Progress("train", total, done=done, interval=interval, enabled=progress is not False) as bar:
        fit(trainer, rows, [last, _Shown(bar, rows.batch_size), *callbacks])
    return last.metrics


def _restore(trainer: Trainer, rows: RowSource, checkpoint: Checkpoint) -> int:
    trainer.load_state_dict(checkpoint.tensors, checkpoint.plain["trainer"])
    if not isinstance(rows, IterableRows):
        tensors = {k.removeprefix("rows."): v for k, v in checkpoint.tensors.items() if k.startswith("rows.")}
        rows.load_state_dict({**checkpoint.plain["rows"], **tensors})
    else:
        logger.warning(
            "the source of rows cannot seek: the run goes on from step %d with rows from the start of the source",
            checkpoint.step,
        )
    return checkpoint.step


def _finish(trainer: Trainer) -> SparseCoder:
    """A copy of the finished coder; the caller's own coder gets the same weights, for raw activations."""
    finished = trainer.inference_coder()
    trainer.coder.load_state_dict(finished.state_dict())
    trainer.coder.is_trained = True
    trainer.coder.requires_grad_(False)
    return finished


def _save_coder(trainer: Trainer, path: Path) -> None:
    hub.save(trainer.inference_coder(), path, log10_density=trainer.statistics.log10_density())


def _report(
    folder: RunFolder, coder: SparseCoder, rows: RowSource, options: EvaluationOptions, progress: bool | float
) -> Report | None:
    if folder.report_path.exists():
        return Report.from_dict(read_json(folder.report_path))
    report = _evaluate(coder, rows, options, progress)
    if report is not None:
        write_json(folder.report_path, report.to_dict())
    return report


def _evaluate(coder: SparseCoder, rows: RowSource, options: EvaluationOptions, progress: bool | float) -> Report | None:
    if isinstance(rows, ArrayRows):
        validation = rows.validation
        return evaluate(coder, activations=validation, n_tokens=options.n_tokens) if len(validation) > 0 else None
    assert isinstance(rows, ActivationStream)
    if rows.tokens is None or rows.tokens.heldout.n_contexts == 0:
        logger.warning("no held-out text, no report: load_tokens(..., heldout_fraction=...) sets some aside")
        return None
    return evaluate(
        coder,
        rows.model,
        rows.tokens,
        n_tokens=options.n_tokens,
        n_loss_tokens=options.n_loss_tokens,
        ablation=options.ablation,
        progress=progress is not False,
    )


def _check_widths(coder: SparseCoder, rows: RowSource) -> None:
    layout = rows.layout
    if (coder.d_in, coder.d_out) != (layout.d_in, layout.d_out):
        raise ShapeError(
            f"the coder reads {coder.d_in} and writes {coder.d_out} dimensions; the source gives {layout.d_in} "
            f"({layout.read_name}) and {layout.d_out} ({layout.write_name}). Make the coder with d_in={layout.d_in}"
            + (f", d_out={layout.d_out}" if layout.d_in != layout.d_out or not layout.is_autoencoder else "")
        )
