"""The JSON envelope of SAEBench 0.6.0's results, around any of its benchmarks' metrics."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

UNMEASURED = -1
"""What SAEBench writes for a number it did not measure, or that is not defined."""


def envelope(
    eval_type_id: str,
    metrics: Mapping[str, Mapping[str, float | int | None]],
    *,
    config: Mapping[str, Any],
    details: Sequence[Mapping[str, Any]] = (),
    coder_config: Mapping[str, Any] | None = None,
    name: str = "",
    unstructured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What SAEBench's graphs, schemas and Neuronpedia read: ``metrics`` lie one level below their category.

    What is None or not finite becomes -1, also in ``details`` and ``unstructured``; ``config`` and ``coder_config``
    are given as they are, which must be JSON values. ``sae_bench_commit_hash`` and ``sae_lens_version`` name no
    version, as neither program ran; ``eval_id`` and the time of writing are new with each call.

    Args:
        eval_type_id: SAEBench's name of the benchmark (``core``, ``absorption_first_letter``, ...).
        metrics: by category, then by metric.
        config: the options of the benchmark.
        details: one flat record for each part (a letter, a data set, a latent).
        coder_config: the dictionary's config.
        name: the dictionary's name, as graphs show it.
        unstructured: anything else.
    """
    return {
        "eval_type_id": eval_type_id,
        "eval_config": dict(config),
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": time.time_ns() // 1_000_000,
        "eval_result_metrics": {category: _measured(dict(values)) for category, values in metrics.items()},
        "eval_result_details": [_measured(dict(each)) for each in details],
        "sae_bench_commit_hash": "",
        "sae_lens_id": name,
        "sae_lens_release_id": "",
        "sae_lens_version": "",
        "sae_cfg_dict": dict(coder_config or {}),
        "eval_result_unstructured": _measured(dict(unstructured or {})),
    }


def _measured(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNMEASURED
    if isinstance(value, Mapping):
        return {key: _measured(each) for key, each in value.items()}
    return [_measured(each) for each in value] if isinstance(value, (list, tuple)) else value
