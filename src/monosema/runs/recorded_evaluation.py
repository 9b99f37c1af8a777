"""The options of evaluation that a run recorded, as far as a file may say them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monosema.core.errors import ConfigError
from monosema.core.option_fields import file_fields
from monosema.runs.config import EvaluationOptions
from monosema.runs.held_config import CONFIG, held_config


def recorded_evaluation(folder: str | os.PathLike[str], name: str | None = None) -> dict[str, Any]:
    """``n_tokens``, ``n_loss_tokens`` and ``ablation`` of the run in ``folder``, or of the run ``name`` of several.

    Empty where there is no run folder, or its config cannot be read. ``ConfigError`` for a value that is not taken from
    a file.
    """
    homes = [Path(folder), *([] if name is None else [Path(folder) / name])]
    held = next((config for home in reversed(homes) if (config := held_config(home)) is not None), {})
    options = held.get("evaluation")
    if not isinstance(options, Mapping):
        return {}
    fields = file_fields(EvaluationOptions)
    found = {name: options[name] for name in fields if name in options}
    for name, value in found.items():
        reason = fields[name].refuses(value)
        if reason is not None:
            raise ConfigError(
                f"{CONFIG} of {folder} says evaluation.{name} = {value!r:.80}, which is not taken from a file: "
                f"{reason}. Give it yourself with --{name.replace('_', '-')}, and correct the file"
            )
    return found
