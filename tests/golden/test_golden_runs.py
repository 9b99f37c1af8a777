"""Golden runs give the curves that are checked in, and say every option that decides them."""

from __future__ import annotations

from typing import Any

import golden
import pytest
import torch

import monosema as ms
from monosema.core.config import from_plain, to_plain
from monosema.runs.config import CacheConfig

NAMES = golden.names()
REPORT_TOLERANCE = 1e-6
"""Some figures of a report are products in float32."""
DRAWN_TOLERANCE = 1e-5
"""Starting weights are normal numbers in float32, whose last bits depend on the processor."""


def assert_close(what: str, value: Any, expected: Any, tolerance: float) -> None:
    if not isinstance(value, (int, float)) or not isinstance(expected, (int, float)):
        assert value == expected, what
        return
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance / 100, nan_ok=True), what


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_run_is_what_it_was(name: str) -> None:
    held = golden.recorded(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = golden.run_recorded(name)
    finally:
        torch.set_num_threads(threads)
    missing = held["curves"].keys() - outcome.curves.keys()
    assert not missing, "these figures are no longer logged"
    for figure, expected in held["curves"].items():
        assert len(outcome.curves[figure]) == len(expected), figure
        for place, (value, wanted) in enumerate(zip(outcome.curves[figure], expected, strict=True)):
            assert_close(f"{figure}, line {place}", value, wanted, held["tolerance"])
    for figure, wanted in held["report"].items():
        assert_close(f"report, {figure}", outcome.report[figure], wanted, REPORT_TOLERANCE)
    assert len(outcome.starting_weights) == len(held["starting_weights"])
    for parameter, numbers in held["starting_weights"].items():
        for value, wanted in zip(outcome.starting_weights[parameter], numbers, strict=True):
            assert_close(f"starting weights, {parameter}", value, wanted, DRAWN_TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_run_names_every_option(name: str) -> None:
    """The config is written out in full, so that a default of a later version changes none of it."""
    held = golden.recorded(name)["config"]
    for part, kind in (("run", ms.RunConfig), ("cache", CacheConfig)):
        if part not in held:
            continue
        full = to_plain(from_plain(kind, held[part]))
        unused = ("model", "other_models", "tokens", "stream") if held[part].get("cache") and part == "run" else ()
        said, known = _paths(held[part]), _paths({key: value for key, value in full.items() if key not in unused})
        unsaid = {path for path in known - said if RENAMED.get(path) not in said}
        assert unsaid <= OPTIONS_SINCE, "add a new option to OPTIONS_SINCE where its default leaves these runs alone"


OPTIONS_SINCE: set[str] = {"tokens.shuffle_documents"}
"""Options added after the runs were recorded; off by default, so that the runs stay what they are."""
RENAMED: dict[str, str] = {}
"""Today's names of options that the files of the runs give by an older name, which is still read."""


def _paths(plain: Any, prefix: str = "") -> set[str]:
    if not isinstance(plain, dict) or not plain:
        return {prefix}
    return {path for key, value in plain.items() for path in _paths(value, f"{prefix}.{key}" if prefix else key)}


def test_the_runs_span_what_there_is() -> None:
    configs = [golden.recorded(name)["config"]["run"] for name in NAMES]
    kinds = {
        kind
        for config in configs
        for place in (
            config["coder"]["activation"],
            *(config["training"][key] for key in ("sparsity", "levels", "revive")),
        )
        if place is not None
        for kind in [place["kind"]]
    }
    assert kinds >= {"ReLU", "TanhReLU", "TopK", "AbsTopK", "BatchTopK", "JumpReLU", "Gated"}
    assert kinds >= {"L1", "Lp", "Tanh", "L0", "QuadraticL0", "RatioL0", "Matryoshka", "HierarchicalTopK"}
    assert kinds >= {"AuxK", "GhostGradients", "PreActivationLoss", "Resample"}
    assert any(config.get("cache") for config in configs)
    assert any(config["training"]["sparse_connection"] for config in configs)
    assert {config["coder"]["tied"] for config in configs} == {"none", "per_source", "per_target"}
    assert {config["training"]["decoder"] for config in configs} == {"free", "unit_norm"}


def test_a_changed_figure_is_noticed() -> None:
    with pytest.raises(AssertionError, match="loss, line 3"):
        assert_close("loss, line 3", 1.0 + 1e-8, 1.0, 1e-9)
