"""From live objects to the run's config: what was used, so that it can be used again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosema.coders import SparseCoder
from monosema.core.config import from_plain, to_plain
from monosema.data import ActivationStream, ArrayRows, IterableRows
from monosema.data.rebuild import recorded_options
from monosema.runs.config import MAIN_MODEL, CoderOptions, EvaluationOptions, ModelOptions, StreamOptions, TokenOptions
from monosema.training import TrainingConfig


def run_config(
    coder: SparseCoder,
    rows: ActivationStream | ArrayRows | IterableRows,
    training: TrainingConfig,
    evaluation: EvaluationOptions,
) -> dict[str, Any]:
    """``config.yaml`` of a run: a ``RunConfig`` for a stream; for plain rows, ``rows`` in place of model and text.

    Several models are ``model`` (the one called ``base``) and ``other_models``; ``models`` where none is called so.
    """
    coder_options = CoderOptions(
        d_sae=coder.d_sae,
        activation=coder.config.activation,
        b_dec=coder.config.b_dec,
        skip=coder.config.skip,
        dtype="float64" if coder.config.dtype == "float64" else "float32",
        seed=coder.config.seed,
    )
    own = {"coder": to_plain(coder_options), "training": to_plain(training)}
    if not isinstance(rows, ActivationStream):
        return {"rows": rows.record(), **own}
    recorded = recorded_options(rows.record())
    return {
        **_models(recorded),
        "tokens": to_plain(from_plain(TokenOptions, recorded["tokens"])),
        "stream": to_plain(from_plain(StreamOptions, recorded["stream"])),
        **own,
        "evaluation": to_plain(evaluation),
    }


def _models(recorded: Mapping[str, Any]) -> dict[str, Any]:
    if "models" not in recorded:
        return {"model": to_plain(from_plain(ModelOptions, recorded["model"]))}
    plain = {key: to_plain(from_plain(ModelOptions, options)) for key, options in recorded["models"].items()}
    if MAIN_MODEL not in plain:
        return {"models": plain}
    return {"model": plain.pop(MAIN_MODEL), "other_models": plain}
