"""Measuring a dictionary on what a run's source has set aside, while it trains and at its end."""

from __future__ import annotations

from typing import Any

from monosema.coders import Dictionary
from monosema.coders.sites import split_names
from monosema.core.errors import ConfigError
from monosema.core.logs import get_logger
from monosema.data import ActivationCache, ActivationStream, ArrayRows, IterableRows
from monosema.data.named_models import split_site_name
from monosema.evaluation import Report, evaluate
from monosema.evaluation.tasks import no_task
from monosema.metrics.figures import FIGURES
from monosema.runs.columns import Columns
from monosema.runs.config import EvaluationOptions
from monosema.training import TrainingConfig

logger = get_logger("monosema.runs")

LOGGED = tuple(name for name, row in FIGURES.items() if row.is_logged)
"""What of a report is logged while training: first of rows, then of predictions, for each model."""
ROW_FIGURES = tuple(name for name in LOGGED if FIGURES[name].needs == "activations")
LOSS_FIGURES = tuple(name for name in LOGGED if FIGURES[name].needs == "predictions")

RowSource = ActivationStream | ActivationCache | ArrayRows | IterableRows


def check_heldout(config: TrainingConfig, rows: RowSource, columns: Columns) -> None:
    """``ConfigError`` where ``config`` wants figures of held-out rows that ``rows`` cannot give.

    That a report will have no losses is logged.
    """
    if config.eval_every > 0 and not has_heldout(rows):
        tokens = rows.tokens if isinstance(rows, ActivationStream) else None
        how = (
            "load_tokens(..., heldout_fraction=...) sets text aside, ArrayRows(..., validation_fraction=...) rows"
            if tokens is None
            else tokens.how_to_hold_out
        )
        raise ConfigError(f"eval_every needs held-out rows: {how}; or leave eval_every at 0")
    no_losses = why_no_losses(rows, columns) if isinstance(rows, ActivationStream) else ""
    if no_losses and has_heldout(rows):
        logger.warning("reports of this run have no cross-entropy or KL: %s", no_losses)
    if config.keep_best is None:
        return
    models = rows.models if isinstance(rows, ActivationStream) else {}
    losses = LOSS_FIGURES if isinstance(rows, ActivationStream) and not no_losses else ()
    names = [*ROW_FIGURES, *(f"{name}/{key}" if key else name for name in losses for key in models or ("",))]
    if config.keep_best.removeprefix("heldout/") not in names:
        raise ConfigError(
            f"keep_best={config.keep_best!r} is not measured on this source; it has "
            + ", ".join(f"heldout/{name}" for name in names)
        )


def why_no_losses(rows: ActivationStream, columns: Columns) -> str:
    """Why no loss can be measured with a dictionary of ``columns`` in place of its sites; empty where one can."""
    return no_task(rows.models or {"": rows.model}) or _capture_only(rows, columns)


def _capture_only(rows: ActivationStream, columns: Columns) -> str:
    for name in split_names(columns.hook_name_out):
        key, hook = split_site_name(name, rows.models) if rows.models else ("", name)
        site = (rows.models[key] if key else rows.model).site(hook)
        if not site.writable:
            return f"{site.name!r} can be read but not written ({site.read_only_reason})"
    return ""


def has_heldout(rows: RowSource) -> bool:
    if isinstance(rows, ArrayRows | ActivationCache):
        return rows.n_validation > 0
    return isinstance(rows, ActivationStream) and rows.tokens is not None and rows.tokens.heldout.n_contexts > 0


def measure(
    coder: Dictionary,
    rows: RowSource,
    columns: Columns,
    options: EvaluationOptions,
    progress: bool | float,
) -> Report | None:
    """The report of ``coder`` on the held-out side of ``rows``; None where there is none."""
    if isinstance(rows, ArrayRows | ActivationCache):
        if not has_heldout(rows):
            return None
        parts = [rows.validation] if isinstance(rows, ArrayRows) else rows.validation_shards()
        return evaluate(coder, activations=(columns.of(part) for part in parts), n_tokens=options.n_tokens)
    assert isinstance(rows, ActivationStream)
    if rows.tokens is None or not has_heldout(rows):
        how = "make the stream of a Tokens" if rows.tokens is None else rows.tokens.how_to_hold_out
        logger.warning("no held-out text, no report: %s", how)
        return None
    return evaluate(
        coder,
        rows.models or rows.model,
        rows.tokens,
        n_tokens=options.n_tokens,
        n_loss_tokens=options.n_loss_tokens,
        ablation=options.ablation,
        losses=not _capture_only(rows, columns),
        progress=progress is not False,
    )


def outlier_figures(rows: RowSource) -> dict[str, Any]:
    """How many training rows were left out so far, for the log; empty where none is ever."""
    return {} if rows.outliers.multiple is None else {"n_outlier_rows": rows.outliers.n_left_out}


def heldout_figures(report: Report) -> dict[str, Any]:
    """What the log keeps of a report."""
    figures = {f"heldout/{name}": getattr(report, name) for name in ROW_FIGURES}
    if report.ce_clean is None and not report.models:  # of plain rows, without a model
        return figures
    runs: dict[str, Any] = {**(report.models or {"": report})}
    for key, losses in runs.items():
        of_model = f"/{key}" if key else ""
        figures |= {f"heldout/{name}{of_model}": getattr(losses, name) for name in LOSS_FIGURES}
    return figures
