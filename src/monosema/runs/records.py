"""From live objects to the run's config: what was used, so that it can be used again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from monosema.coders import TrainableDictionary
from monosema.core.config import from_plain, to_plain
from monosema.data import ActivationCache, ActivationStream, ArrayRows, IterableRows
from monosema.data.rebuild import described_options
from monosema.runs.config import (
    MAIN_MODEL,
    EvaluationOptions,
    ModelOptions,
    StreamOptions,
    TokenOptions,
)
from monosema.runs.start import coder_options
from monosema.training import TrainingConfig


def run_config(
    coder: TrainableDictionary,
    rows: ActivationStream | ActivationCache | ArrayRows | IterableRows,
    training: TrainingConfig,
    evaluation: EvaluationOptions,
) -> dict[str, Any]:
    """``config.yaml`` of a run: a ``RunConfig`` for a stream or cache; for plain rows, ``rows`` in place of the source.

    Several models are ``model`` (the one called ``base``) and ``other_models``; ``models`` where none is called so.
    """
    options = coder_options(coder)
    if options.token_scaling == training.input_scaling:  # it was training that made it the coder's own
        options = replace(options, token_scaling="none")
    described = {"coder": to_plain(options), "training": to_plain(training)}
    if isinstance(rows, ActivationCache):
        return {"cache": to_plain(rows.options), **described, "evaluation": to_plain(evaluation)}
    if not isinstance(rows, ActivationStream):
        record = {name: value for name, value in rows.record().items() if name != "median_norms"}  # found, not chosen
        return {"rows": record, **described}
    recorded = described_options(rows.record())
    return {
        **_models(recorded),
        "tokens": to_plain(from_plain(TokenOptions, recorded["tokens"])),
        "stream": to_plain(from_plain(StreamOptions, recorded["stream"])),
        **described,
        "evaluation": to_plain(evaluation),
    }


def knows_outliers(config: Mapping[str, Any]) -> bool:
    """Whether the ``config.yaml`` of a run says which rows are left out; those of older versions left out none."""
    sources = [config.get(name) for name in ("cache", "stream", "rows")]
    return any(isinstance(source, Mapping) and "outlier_norm_multiple" in source for source in sources)


def _models(recorded: Mapping[str, Any]) -> dict[str, Any]:
    if "models" not in recorded:
        return {"model": to_plain(from_plain(ModelOptions, recorded["model"]))}
    plain = {key: to_plain(from_plain(ModelOptions, options)) for key, options in recorded["models"].items()}
    if MAIN_MODEL not in plain:
        return {"models": plain}
    return {"model": plain.pop(MAIN_MODEL), "other_models": plain}
