"""The envelope of SAEBench's results."""

import json
import math
import time
import uuid

from monosema.evaluation.saebench_layout import envelope

KEYS = {
    "eval_type_id",
    "eval_config",
    "eval_id",
    "datetime_epoch_millis",
    "eval_result_metrics",
    "eval_result_details",
    "sae_bench_commit_hash",
    "sae_lens_id",
    "sae_lens_release_id",
    "sae_lens_version",
    "sae_cfg_dict",
    "eval_result_unstructured",
}


def test_the_envelope_has_every_key_of_the_layout() -> None:
    before = time.time() * 1000
    written = envelope("core", {"sparsity": {"l0": 3.0}}, config={"seed": 1}, coder_config={"d_in": 2}, name="mine")
    assert set(written) == KEYS
    assert written["eval_type_id"] == "core" and written["eval_config"] == {"seed": 1}
    assert uuid.UUID(written["eval_id"]).version == 4
    assert before - 1 <= written["datetime_epoch_millis"] <= time.time() * 1000
    assert written["sae_lens_id"] == "mine" and written["sae_cfg_dict"] == {"d_in": 2}
    assert envelope("core", {}, config={})["eval_id"] != written["eval_id"]


def test_what_is_not_measured_is_minus_one() -> None:
    written = envelope(
        "core",
        {"a": {"nan": math.nan, "none": None, "inf": -math.inf, "zero": 0.0}},
        config={"absent": None},
        details=[{"index": 0, "value": math.nan}],
        unstructured={"deep": {"values": (1.0, math.nan)}},
    )
    assert written["eval_result_metrics"] == {"a": {"nan": -1, "none": -1, "inf": -1, "zero": 0.0}}
    assert written["eval_result_details"] == [{"index": 0, "value": -1}]
    assert written["eval_result_unstructured"] == {"deep": {"values": [1.0, -1]}}
    assert written["eval_config"] == {"absent": None}
    json.dumps(written, allow_nan=False)
