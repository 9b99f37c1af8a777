"""From live objects to the run's config: what was used, so that it can be used again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosema.coders import Dictionary, StackConfig
from monosema.core.config import from_plain, to_plain
from monosema.data import ActivationStream, ArrayRows, IterableRows
from monosema.data.rebuild import recorded_options
from monosema.runs.config import MAIN_MODEL, CoderOptions, EvaluationOptions, ModelOptions, StreamOptions, TokenOptions
from monosema.training import TrainingConfig


def run_config(
    coder: Dictionary,
    rows: ActivationStream | ArrayRows | IterableRows,
    training: TrainingConfig,
    evaluation: EvaluationOptions,
) -> dict[str, Any]:
    """``config.yaml`` of a run: a ``RunConfig`` for a stream; for plain rows, ``rows`` in place of model and text.

    Several models are ``model`` (the one called ``base``) and ``other_models``; ``models`` where none is called so.
    """
    made = coder.config
    scaled_by_training = training.input_scaling == made.token_scaling
    own: dict[str, Any] = (
        {"variant": "cross_layer_transcoder", "tied": made.tied}
        if isinstance(made, StackConfig)
        else {
            "b_dec": made.b_dec,
            "skip": made.skip,
            "causal": made.causal,
            "decoder_init": made.decoder_init,
            "decoder_init_norm": made.decoder_init_norm,
            "encoder_init": made.encoder_init,
        }
    )
    coder_options = CoderOptions(
        d_sae=made.d_sae,
        activation=made.activation,
        token_scaling="none" if scaled_by_training else made.token_scaling,
        dtype="float64" if made.dtype == "float64" else "float32",
        seed=made.seed,
        **own,
    )
    described = {"coder": to_plain(coder_options), "training": to_plain(training)}
    if not isinstance(rows, ActivationStream):
        return {"rows": rows.record(), **described}
    recorded = recorded_options(rows.record())
    return {
        **_models(recorded),
        "tokens": to_plain(from_plain(TokenOptions, recorded["tokens"])),
        "stream": to_plain(from_plain(StreamOptions, recorded["stream"])),
        **described,
        "evaluation": to_plain(evaluation),
    }


def _models(recorded: Mapping[str, Any]) -> dict[str, Any]:
    if "models" not in recorded:
        return {"model": to_plain(from_plain(ModelOptions, recorded["model"]))}
    plain = {key: to_plain(from_plain(ModelOptions, options)) for key, options in recorded["models"].items()}
    if MAIN_MODEL not in plain:
        return {"models": plain}
    return {"model": plain.pop(MAIN_MODEL), "other_models": plain}
